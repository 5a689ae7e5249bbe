//! What can go wrong, as one enum.

use std::path::PathBuf;

/// A result with this crate's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What can go wrong between Rust and llama.cpp.
///
/// Messages are lower-case fragments that name the object and the number. Where llama.cpp gave a reason
/// in its log, the reason is part of the message.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The file is not a GGUF file that can be read; the reader's own error says where and why.
    #[error(transparent)]
    Gguf(#[from] gguf::Error),

    /// A model file could not be examined.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },

    /// The file's metadata asks for something that llama.cpp cannot do, or would abort on.
    #[error("{}: {reason}", path.display())]
    UnsupportedModel {
        /// The model's first part.
        path: PathBuf,
        /// Which key or tensor is wrong, and how.
        reason: String,
    },

    /// A parameter is outside its range, or contradicts another one.
    #[error("{name}: {reason}")]
    InvalidParameter {
        /// The parameter's name, as in the Rust type.
        name: &'static str,
        /// The value and the range.
        reason: String,
    },

    /// llama.cpp refused to load the model.
    #[error("{}: cannot load the model: {reason}", path.display())]
    Load {
        /// The model's first part.
        path: PathBuf,
        /// What llama.cpp logged.
        reason: String,
    },

    /// A file is no LoRA adapter, or none for this model.
    #[error("{}: cannot use the LoRA adapter: {reason}", path.display())]
    Adapter {
        /// The adapter's file.
        path: PathBuf,
        /// Which key or tensor is wrong, and how; or what llama.cpp logged.
        reason: String,
    },

    /// The progress callback asked to stop. Everything that was loaded has been freed.
    #[error("loading was cancelled")]
    Cancelled,

    /// A file of a loaded model is no longer what it was when it was loaded.
    #[error("{}: the model file changed while it was in use: {reason}; load the model again", path.display())]
    ModelChanged {
        /// The part that changed.
        path: PathBuf,
        /// What changed.
        reason: String,
    },

    /// llama.cpp could not create a context.
    #[error("cannot create a context: {reason}")]
    ContextCreation {
        /// What llama.cpp logged.
        reason: String,
    },

    /// The KV cache has no room for the batch.
    #[error("no room in the KV cache for {n_tokens} more tokens (n_ctx {n_ctx})")]
    KvCacheFull {
        /// Tokens in the batch.
        n_tokens: usize,
        /// The context's size in tokens.
        n_ctx: u32,
    },

    /// The abort flag was set during a decode.
    #[error("decoding was aborted")]
    Aborted,

    /// `llama_decode` failed.
    #[error("decoding failed (status {status}): {reason}")]
    Decode {
        /// What `llama_decode` returned.
        status: i32,
        /// What llama.cpp logged.
        reason: String,
    },

    /// A [`SliceProvider`](crate::SliceProvider) could not give the address of a slice.
    #[error("decoding failed: {slice} of {tensor} cannot be read{}", .reason.as_ref().map(|r| format!(": {r}")).unwrap_or_default())]
    SliceUnavailable {
        /// The weight tensor's name.
        tensor: String,
        /// The slice, such as `matrix 17`.
        slice: String,
        /// The provider's own reason, when it gave one.
        reason: Option<String>,
    },

    /// Weights of the model are where a [`SliceProvider`](crate::SliceProvider) says, and the context has none.
    #[error(
        "decoding failed: the model's experts are in no mapping, and the context has no slice provider that says where they are"
    )]
    NoProvider,

    /// A [`Router`](crate::Router)'s picks could not be used. The model's own were used from there on.
    #[error(
        "decoding failed: the experts for token {token} of the batch in layer {layer} cannot be used: {reason}"
    )]
    Misrouted {
        /// The layer.
        layer: u32,
        /// The token, by its index in the batch.
        token: usize,
        /// What is wrong with them.
        reason: String,
    },

    /// A Rust callback panicked while llama.cpp was running. The panic was caught at the boundary and the
    /// operation was ended.
    #[error("{callback} panicked: {message}")]
    CallbackPanicked {
        /// Which callback.
        callback: &'static str,
        /// The panic's message.
        message: String,
    },

    /// A C++ exception was caught at the boundary.
    #[error("{call} failed: {message}")]
    Native {
        /// The C function.
        call: &'static str,
        /// The exception's message.
        message: String,
    },

    /// A batch is full or an entry does not fit.
    #[error("batch: {0}")]
    Batch(String),

    /// No logits are kept for this row of the last batch.
    #[error("no logits for batch row {row}: {reason}")]
    NoLogits {
        /// Row of the last batch, counted from its start, or negative from the last output.
        row: i32,
        /// Why there are none.
        reason: String,
    },

    /// The model has no tokenizer, so that text cannot be used with it.
    #[error(
        "the model has no tokenizer (tokenizer.ggml.model is {0:?}); only token ids can be used with it"
    )]
    NoTokenizer(String),

    /// Text could not be turned into tokens.
    #[error("cannot tokenize {bytes} bytes of text: {reason}")]
    Tokenize {
        /// Length of the text in bytes.
        bytes: usize,
        /// Why.
        reason: String,
    },

    /// A token id is not in the model's vocabulary.
    #[error("token {token} is outside the vocabulary of {n_tokens} tokens")]
    TokenOutOfRange {
        /// The id.
        token: i32,
        /// Size of the vocabulary.
        n_tokens: u32,
    },

    /// The chat template is missing or is not one that llama.cpp's C API knows.
    #[error("chat template: {0}")]
    ChatTemplate(String),

    /// A sampler could not choose a token.
    #[error("sampling failed: {0}")]
    Sampling(String),
}

impl Error {
    /// An [`Error::InvalidParameter`].
    pub(crate) fn parameter(name: &'static str, reason: impl Into<String>) -> Error {
        Error::InvalidParameter {
            name,
            reason: reason.into(),
        }
    }
}
