//! Errors in OpenAI's shape: `{"error": {"message", "type", "param", "code"}}`.

use std::time::Duration;

use axum::body::Body;
use axum::http::{HeaderValue, Response, StatusCode, header};
use axum::response::IntoResponse;
use serde_json::{Value, json};

use crate::generate::Failure;
use crate::lifecycle::Refusal;

/// An answer that is an error.
#[derive(Clone, Debug)]
pub(super) struct ApiError {
    status: StatusCode,
    kind: &'static str,
    message: String,
    param: Option<String>,
    code: Option<&'static str>,
    retry_after: Option<Duration>,
}

impl ApiError {
    fn new(status: StatusCode, kind: &'static str, message: impl Into<String>) -> ApiError {
        ApiError {
            status,
            kind,
            message: message.into(),
            param: None,
            code: None,
            retry_after: None,
        }
    }

    /// 400: the request makes no sense.
    pub(super) fn invalid(message: impl Into<String>) -> ApiError {
        ApiError::new(StatusCode::BAD_REQUEST, "invalid_request_error", message)
    }

    /// 400 because of a parameter.
    pub(super) fn parameter(param: impl Into<String>, message: impl Into<String>) -> ApiError {
        ApiError {
            param: Some(param.into()),
            ..ApiError::invalid(message)
        }
    }

    /// 400: a parameter that is understood, but not served.
    pub(super) fn unsupported(param: &str, problem: &str) -> ApiError {
        let error = ApiError::parameter(param, format!("`{param}`: {problem} is not supported"));
        ApiError {
            code: Some("unsupported_parameter"),
            ..error
        }
    }

    /// A client error with another code than 400.
    pub(super) fn client(status: StatusCode, message: impl Into<String>) -> ApiError {
        ApiError::new(status, "invalid_request_error", message)
    }

    pub(super) fn unauthorized() -> ApiError {
        let error = ApiError::new(
            StatusCode::UNAUTHORIZED,
            "authentication_error",
            "Invalid API Key",
        );
        ApiError {
            code: Some("invalid_api_key"),
            ..error
        }
    }

    /// 404: `name` is what the client asked for. It is shown quoted and cut.
    pub(super) fn no_model(name: &str) -> ApiError {
        let shown: String = name.chars().take(128).collect();
        let message = format!("model {shown:?} is not configured; GET /v1/models lists the models");
        ApiError {
            param: Some("model".to_owned()),
            code: Some("model_not_found"),
            ..ApiError::client(StatusCode::NOT_FOUND, message)
        }
    }

    /// The object of the body.
    pub(super) fn body(&self) -> Value {
        json!({"error": {
            "message": self.message,
            "type": self.kind,
            "param": self.param,
            "code": self.code,
        }})
    }
}

impl From<Refusal> for ApiError {
    fn from(refusal: Refusal) -> ApiError {
        let message = refusal.to_string();
        let unavailable = |retry_after| ApiError {
            retry_after: Some(retry_after),
            ..ApiError::new(
                StatusCode::SERVICE_UNAVAILABLE,
                "unavailable_error",
                message.clone(),
            )
        };
        match refusal {
            Refusal::ModelBusy { .. } => ApiError {
                code: Some("rate_limit_exceeded"),
                retry_after: Some(Duration::from_secs(1)),
                ..ApiError::new(StatusCode::TOO_MANY_REQUESTS, "rate_limit_error", message)
            },
            Refusal::LoadFailed { retry_in, .. } => unavailable(retry_in),
            Refusal::ServerBusy { .. } | Refusal::Unloaded { .. } | Refusal::ShuttingDown => {
                unavailable(Duration::from_secs(1))
            }
        }
    }
}

impl From<Failure> for ApiError {
    fn from(failure: Failure) -> ApiError {
        let message = failure.to_string();
        match failure {
            Failure::BadRequest { param, .. } => ApiError::parameter(param, message),
            Failure::ContextLength { .. } => ApiError {
                code: Some("context_length_exceeded"),
                ..ApiError::parameter("messages", message)
            },
            Failure::Unavailable(_) => ApiError {
                retry_after: Some(Duration::from_secs(1)),
                ..ApiError::new(
                    StatusCode::SERVICE_UNAVAILABLE,
                    "unavailable_error",
                    message,
                )
            },
            Failure::Internal(_) => {
                ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, "server_error", message)
            }
        }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response<Body> {
        let mut response = super::json_response(self.status, &self.body());
        let headers = response.headers_mut();
        if let Some(time) = self.retry_after {
            let seconds = time.as_secs_f64().ceil().max(1.0) as u64;
            headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        if self.status == StatusCode::UNAUTHORIZED {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response
    }
}
