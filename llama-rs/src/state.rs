//! The state of a sequence as bytes, to go on with it in another context.

use llama_sys as sys;

use crate::assertions;
use crate::context::Context;
use crate::error::{Error, Result};
use crate::logs;
use crate::shim;

impl Context<'_> {
    /// Length of [`sequence_state`](Context::sequence_state), in bytes. Wraps `llama_state_seq_get_size`.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidParameter`] when there is no such sequence; [`Error::Native`] when llama.cpp fails.
    pub fn sequence_state_bytes(&mut self, sequence: u32) -> Result<usize> {
        self.check_sequence(sequence)?;
        let mut size_bytes = 0;
        if !self.memory().is_null() {
            // SAFETY: the context is alive and borrowed mutably; the sequence exists. The call counts and computes nothing.
            let status = assertions::as_errors(|| unsafe {
                sys::faultline_state_seq_get_size(self.raw(), sequence as i32, &mut size_bytes)
            });
            shim::check("llama_state_seq_get_size", status)?;
        }
        Ok(size_bytes)
    }

    /// What the KV cache holds of `sequence`, in llama.cpp's own format, which changes between its builds. Of layers with a
    /// sliding window that is only what the next token sees. Empty for a model that keeps no state between batches. Wraps
    /// `llama_state_seq_get_data`.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidParameter`] when there is no such sequence; [`Error::Native`] when llama.cpp fails, or there is no memory for
    /// the copy.
    pub fn sequence_state(&mut self, sequence: u32) -> Result<Vec<u8>> {
        let size_bytes = self.sequence_state_bytes(sequence)?;
        let mut state = Vec::new();
        if size_bytes == 0 {
            return Ok(state);
        }
        let call = "llama_state_seq_get_data";
        let failed = |message: String| Error::Native { call, message };
        state
            .try_reserve_exact(size_bytes)
            .map_err(|error| failed(format!("{size_bytes} bytes: {error}")))?;
        state.resize(size_bytes, 0);
        logs::clear_reasons();
        let mut written_bytes = 0;
        // SAFETY: the context is alive and borrowed mutably; the sequence exists, since its size was told; `state` has the length
        // that is given. The call copies and computes nothing.
        let status = assertions::as_errors(|| unsafe {
            sys::faultline_state_seq_get_data(
                self.raw(),
                state.as_mut_ptr(),
                state.len(),
                sequence as i32,
                &mut written_bytes,
            )
        });
        shim::check(call, status)?;
        if written_bytes != size_bytes {
            return Err(failed(logs::take_reason("llama.cpp gave no reason")));
        }
        Ok(state)
    }

    /// Puts what [`sequence_state`](Context::sequence_state) gave into the KV cache as `sequence`, in place of what that held. Only
    /// bytes that it gave, for the same model and parameters, make sense; others are refused as far as llama.cpp notices, or give
    /// wrong numbers later. After an error the sequence is empty. Wraps `llama_state_seq_set_data`.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidParameter`] when there is no such sequence; [`Error::Native`] when the bytes are no state of this kind of
    /// cache, or it has no room for them.
    pub fn set_sequence_state(&mut self, sequence: u32, state: &[u8]) -> Result<()> {
        self.check_sequence(sequence)?;
        let call = "llama_state_seq_set_data";
        let failed = |message: String| Error::Native { call, message };
        if self.memory().is_null() {
            return Err(failed(
                "the model keeps no state between batches".to_owned(),
            ));
        }
        logs::clear_reasons();
        let mut read_bytes = 0;
        // SAFETY: the context is alive and borrowed mutably; the sequence exists; `state` has the length that is given, and every read
        // of it is checked against that. The call copies and computes nothing.
        let status = assertions::as_errors(|| unsafe {
            sys::faultline_state_seq_set_data(
                self.raw(),
                state.as_ptr(),
                state.len(),
                sequence as i32,
                &mut read_bytes,
            )
        });
        let result = match shim::check(call, status) {
            Ok(()) if read_bytes == state.len() && read_bytes > 0 => return Ok(()),
            Ok(()) => Err(failed(logs::take_reason("it has another length"))),
            Err(error) => Err(error),
        };
        // One of several caches may have taken its part.
        self.memory_seq_rm(sequence, 0, None)?;
        result
    }
}
