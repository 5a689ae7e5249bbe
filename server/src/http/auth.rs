//! The check of API keys. It takes the same time whichever key is wrong, and however much of it is right.

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::{HeaderMap, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use sha2::{Digest, Sha256};
use subtle::{Choice, ConstantTimeEq};

use super::App;
use super::error::ApiError;

/// The accepted keys, as hashes: equally long, so that comparing them tells nothing about lengths either.
pub(super) struct Keys(Vec<[u8; 32]>);

impl std::fmt::Debug for Keys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Keys({})", self.0.len())
    }
}

impl Keys {
    pub(super) fn new(keys: &[String]) -> Keys {
        Keys(keys.iter().map(|key| Sha256::digest(key).into()).collect())
    }

    /// Whether a request with these headers may go on. Without configured keys any may, with whatever key: clients of OpenAI
    /// always send one.
    fn accept(&self, headers: &HeaderMap) -> bool {
        if self.0.is_empty() {
            return true;
        }
        let given = headers
            .get(header::AUTHORIZATION)
            .map_or(&b""[..], |value| value.as_bytes());
        let is_bearer = given
            .get(..7)
            .is_some_and(|scheme| scheme.eq_ignore_ascii_case(b"bearer "));
        let key: [u8; 32] = Sha256::digest(given.get(7..).unwrap_or_default()).into();
        let found = self
            .0
            .iter()
            .fold(Choice::from(0), |found, known| found | known.ct_eq(&key));
        is_bearer & bool::from(found)
    }
}

/// Lets requests with a key through.
pub(super) async fn check(State(app): State<Arc<App>>, request: Request, next: Next) -> Response {
    match app.keys.accept(request.headers()) {
        true => next.run(request).await,
        false => ApiError::unauthorized().into_response(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_known_keys_pass() {
        let keys = Keys::new(&["one".to_owned(), "two".to_owned()]);
        for (value, expected) in [
            (Some("Bearer one"), true),
            (Some("bearer two"), true),
            (Some("Bearer on"), false),
            (Some("Bearer onee"), false),
            (Some("Bearer "), false),
            (Some("Basic one"), false),
            (Some("one"), false),
            (Some("Bearer one two"), false),
            (None, false),
        ] {
            let mut headers = HeaderMap::new();
            if let Some(value) = value {
                headers.insert(header::AUTHORIZATION, value.parse().unwrap());
            }
            assert_eq!(keys.accept(&headers), expected, "{value:?}");
            assert!(Keys::new(&[]).accept(&headers));
        }
        assert!(!format!("{keys:?}").contains("one"));
    }
}
