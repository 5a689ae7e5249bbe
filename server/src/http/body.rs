//! Bodies of requests: JSON, within a size and a time.

use axum::extract::Request;
use axum::http::{StatusCode, header};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use serde::de::DeserializeOwned;

use super::App;
use super::error::ApiError;

/// The body as a value. Everything that is wrong with it is an error of the client.
pub(super) async fn json<T: DeserializeOwned>(app: &App, request: Request) -> Result<T, ApiError> {
    // A page of another site can make a browser send any body, but not with this type unless this server allows it.
    let kind = request
        .headers()
        .get(header::CONTENT_TYPE)
        .and_then(|kind| kind.to_str().ok());
    let is_json = kind.is_some_and(|kind| {
        let kind = kind.split(';').next().unwrap_or_default().trim();
        kind.eq_ignore_ascii_case("application/json")
    });
    if !is_json {
        let message = "the body must be JSON, with the header `Content-Type: application/json`";
        return Err(ApiError::client(
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            message,
        ));
    }
    let limit_bytes = usize::try_from(app.config.body_limit_bytes).unwrap_or(usize::MAX);
    let body = Limited::new(request.into_body(), limit_bytes).collect();
    let bytes = match tokio::time::timeout(app.config.receive_timeout, body).await {
        Ok(Ok(body)) => body.to_bytes(),
        Ok(Err(error)) if error.downcast_ref::<LengthLimitError>().is_some() => {
            let message = format!("the body is larger than {limit_bytes} bytes (body_limit)");
            return Err(ApiError::client(StatusCode::PAYLOAD_TOO_LARGE, message));
        }
        Ok(Err(error)) => {
            return Err(ApiError::invalid(format!(
                "the body cannot be read: {error}"
            )));
        }
        Err(_) => {
            let message = "the body did not arrive in time (receive_timeout)";
            return Err(ApiError::client(StatusCode::REQUEST_TIMEOUT, message));
        }
    };
    serde_json::from_slice(&bytes).map_err(|error| {
        let message = error.to_string();
        // serde names a field between back quotes.
        match message
            .split('`')
            .nth(1)
            .filter(|_| error.is_data())
            .map(str::to_owned)
        {
            Some(field) => ApiError::parameter(field, message),
            None => ApiError::invalid(format!("the body is not valid: {message}")),
        }
    })
}
