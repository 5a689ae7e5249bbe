//! A client for this server's own API, for the command line and for tests.

use std::net::SocketAddr;

use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::http1;
use hyper::{Method, Request, Response, header};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::TcpStream;

/// Speaks to one server, with a connection for each request.
#[derive(Clone, Debug)]
pub struct Client {
    address: SocketAddr,
    key: Option<String>,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ClientError {
    /// Nobody listens there.
    #[error("no server answers at {address}: {source}; `faultline serve` starts one")]
    Connect {
        /// Where.
        address: SocketAddr,
        /// The system's answer.
        source: std::io::Error,
    },
    /// The connection broke.
    #[error("the server at {address} gave no answer: {source}")]
    Http {
        /// Where.
        address: SocketAddr,
        /// What happened.
        source: hyper::Error,
    },
    /// A path or a key that cannot be sent.
    #[error("the request cannot be sent: {0}")]
    Request(#[from] hyper::http::Error),
    /// The answer is not JSON.
    #[error("the server at {address} answered with status {status}, and not with JSON: {source}")]
    Json {
        /// Where.
        address: SocketAddr,
        /// The answer's status.
        status: u16,
        /// What is wrong with it.
        source: serde_json::Error,
    },
    /// The server says that something is wrong.
    #[error("{message}")]
    Refused {
        /// The answer's status.
        status: u16,
        /// The server's words.
        message: String,
    },
}

impl Client {
    /// A client of the server at `address`, with an API key if that asks for one.
    pub fn new(address: SocketAddr, key: Option<String>) -> Client {
        Client { address, key }
    }

    /// Sends a request, with a body if there is one; the answer as it comes.
    ///
    /// # Errors
    ///
    /// [`ClientError`], but not for a status that is an error.
    pub async fn send(
        &self,
        method: Method,
        path: &str,
        body: Option<&Value>,
    ) -> Result<Response<Incoming>, ClientError> {
        let address = self.address;
        let stream = TcpStream::connect(address).await;
        let stream = stream.map_err(|source| ClientError::Connect { address, source })?;
        let broken = |source| ClientError::Http { address, source };
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream))
            .await
            .map_err(broken)?;
        // Ends with the answer's body; an error of it is also an error of that.
        tokio::spawn(connection);
        let mut request = Request::builder().method(method).uri(path);
        request = request.header(header::HOST, address.to_string());
        if let Some(key) = &self.key {
            request = request.header(header::AUTHORIZATION, format!("Bearer {key}"));
        }
        let bytes = match body {
            Some(body) => {
                request = request.header(header::CONTENT_TYPE, "application/json");
                Bytes::from(body.to_string())
            }
            None => Bytes::new(),
        };
        sender
            .send_request(request.body(Full::new(bytes))?)
            .await
            .map_err(broken)
    }

    /// `GET path`; the status and the body.
    ///
    /// # Errors
    ///
    /// As [`send`](Client::send), or the body ended early.
    pub async fn get(&self, path: &str) -> Result<(u16, Vec<u8>), ClientError> {
        let response = self.send(Method::GET, path, None).await?;
        self.collect(response).await
    }

    /// `POST path` with a body; the status and the body of the answer.
    ///
    /// # Errors
    ///
    /// As [`send`](Client::send), or the body ended early.
    pub async fn post(&self, path: &str, body: &Value) -> Result<(u16, Vec<u8>), ClientError> {
        let response = self.send(Method::POST, path, Some(body)).await?;
        self.collect(response).await
    }

    /// The object that the server answers with.
    ///
    /// # Errors
    ///
    /// As [`send`](Client::send); [`ClientError::Json`] when it is none, [`ClientError::Refused`] when it is an error.
    pub async fn call(&self, path: &str, body: Option<&Value>) -> Result<Value, ClientError> {
        let method = if body.is_some() {
            Method::POST
        } else {
            Method::GET
        };
        let response = self.send(method, path, body).await?;
        let (status, bytes) = self.collect(response).await?;
        let value: Value = serde_json::from_slice(&bytes).map_err(|source| ClientError::Json {
            address: self.address,
            status,
            source,
        })?;
        match value["error"]["message"].as_str() {
            Some(message) => Err(ClientError::Refused {
                status,
                message: message.to_owned(),
            }),
            None => Ok(value),
        }
    }

    /// As [`call`](Client::call), for callers that have nothing else to do.
    ///
    /// # Errors
    ///
    /// As [`call`](Client::call); [`ClientError::Connect`] also when the system has no means to wait.
    pub fn call_blocking(&self, path: &str, body: Option<&Value>) -> Result<Value, ClientError> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build();
        let runtime = runtime.map_err(|source| ClientError::Connect {
            address: self.address,
            source,
        })?;
        runtime.block_on(self.call(path, body))
    }

    async fn collect(&self, response: Response<Incoming>) -> Result<(u16, Vec<u8>), ClientError> {
        let status = response.status().as_u16();
        let body = response.into_body().collect().await;
        let body = body.map_err(|source| ClientError::Http {
            address: self.address,
            source,
        })?;
        Ok((status, body.to_bytes().to_vec()))
    }
}
