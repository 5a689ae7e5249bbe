//! Chat templates that llama.cpp knows.

use std::ffi::CString;

use llama_sys as sys;

use crate::error::{Error, Result};
use crate::model::Model;
use crate::shim;

/// One message of a chat.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChatMessage {
    /// Who speaks: `system`, `user`, `assistant`.
    pub role: String,
    /// What is said.
    pub content: String,
}

impl ChatMessage {
    /// A message.
    pub fn new(role: impl Into<String>, content: impl Into<String>) -> Self {
        ChatMessage {
            role: role.into(),
            content: content.into(),
        }
    }
}

impl Model {
    /// Turns a chat into the text that the model was trained on, with the model's own template. With `add_assistant`
    /// the text ends with the beginning of the assistant's answer. Wraps `llama_chat_apply_template`.
    ///
    /// llama.cpp's C API does not run templates; it recognises the widespread ones by their text.
    ///
    /// # Errors
    ///
    /// [`Error::ChatTemplate`] when the model has no template, or one that llama.cpp does not recognise, or a message
    /// contains a NUL byte.
    pub fn apply_chat_template(
        &self,
        messages: &[ChatMessage],
        add_assistant: bool,
    ) -> Result<String> {
        let template = self.chat_template().ok_or_else(|| {
            Error::ChatTemplate("the model has none; give the prompt as plain text".to_owned())
        })?;
        apply(&template, messages, add_assistant)
    }
}

/// Applies `template`, the text of a template or the name of one that llama.cpp knows.
pub(crate) fn apply(
    template: &str,
    messages: &[ChatMessage],
    add_assistant: bool,
) -> Result<String> {
    let c_string = |what: &str, text: &str| {
        CString::new(text).map_err(|_| Error::ChatTemplate(format!("{what} contains a NUL byte")))
    };
    let template = c_string("the template", template)?;
    let texts = messages
        .iter()
        .map(|m| {
            Ok((
                c_string("a role", &m.role)?,
                c_string("a message", &m.content)?,
            ))
        })
        .collect::<Result<Vec<_>>>()?;
    let raw: Vec<sys::llama_chat_message> = texts
        .iter()
        .map(|(role, content)| sys::llama_chat_message {
            role: role.as_ptr(),
            content: content.as_ptr(),
        })
        .collect();

    let text_bytes: usize = messages
        .iter()
        .map(|m| m.role.len() + m.content.len())
        .sum();
    let mut buffer = vec![0u8; 2 * text_bytes + 512];
    for _ in 0..2 {
        let capacity = i32::try_from(buffer.len()).map_err(|_| {
            Error::ChatTemplate(format!("{text_bytes} bytes of messages are too many"))
        })?;
        let mut needed = 0;
        // SAFETY: `template` and every string in `raw` are NUL-terminated and outlive the call; `raw` has `raw.len()`
        // entries; `buffer` is writable for `capacity` bytes.
        shim::check("llama_chat_apply_template", unsafe {
            sys::faultline_chat_apply_template(
                template.as_ptr(),
                raw.as_ptr(),
                raw.len(),
                add_assistant,
                buffer.as_mut_ptr().cast(),
                capacity,
                &mut needed,
            )
        })?;
        let Ok(needed) = usize::try_from(needed) else {
            return Err(Error::ChatTemplate(
                "the model's template is not one of those that llama.cpp recognises; give the prompt as plain text"
                    .to_owned(),
            ));
        };
        if needed <= buffer.len() {
            buffer.truncate(needed);
            return Ok(String::from_utf8_lossy(&buffer).into_owned());
        }
        buffer.resize(needed, 0);
    }
    Err(Error::ChatTemplate(
        "llama.cpp gave two different lengths".to_owned(),
    ))
}
