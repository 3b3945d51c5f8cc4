//! A small JSON client for the REST API that hands back whatever the server answered.

use reqwest::header::HeaderMap;
use reqwest::{Client, Method, RequestBuilder};
use serde_json::Value;

use super::within;

#[derive(Clone)]
pub struct Rest {
    base: String,
    token: Option<String>,
    client: Client,
}

/// An answer: `body` is JSON, or null when the text is not.
#[derive(Debug)]
pub struct Reply {
    pub status: u16,
    pub headers: HeaderMap,
    pub text: String,
    pub body: Value,
}

impl Rest {
    /// `base` is like `http://127.0.0.1:4711`.
    pub fn new(base: impl Into<String>) -> Self {
        let client = Client::builder().no_proxy().build().expect("a plain HTTP client needs nothing");
        Self { base: base.into(), token: None, client }
    }

    /// The same server, as the owner of `token`.
    pub fn with_token(&self, token: &str) -> Self {
        Self { token: Some(token.to_owned()), ..self.clone() }
    }

    pub async fn get(&self, path: &str) -> Reply {
        Self::send(self.request(Method::GET, path)).await
    }

    pub async fn post(&self, path: &str, body: &Value) -> Reply {
        Self::send(self.request(Method::POST, path).json(body)).await
    }

    pub async fn put(&self, path: &str, body: &Value) -> Reply {
        Self::send(self.request(Method::PUT, path).json(body)).await
    }

    pub async fn patch(&self, path: &str, body: &Value) -> Reply {
        Self::send(self.request(Method::PATCH, path).json(body)).await
    }

    pub async fn delete(&self, path: &str) -> Reply {
        Self::send(self.request(Method::DELETE, path)).await
    }

    /// A request to finish by hand: odd bodies, odd headers.
    pub fn request(&self, method: Method, path: &str) -> RequestBuilder {
        let request = self.client.request(method, format!("{}{path}", self.base));
        match &self.token {
            Some(token) => request.bearer_auth(token),
            None => request,
        }
    }

    /// Sends it and reads the whole answer.
    pub async fn send(request: RequestBuilder) -> Reply {
        within(async {
            let response = request.send().await.expect("the server answers");
            let (status, headers) = (response.status().as_u16(), response.headers().clone());
            let text = response.text().await.expect("the answer is whole");
            let body = serde_json::from_str(&text).unwrap_or(Value::Null);
            Reply { status, headers, text, body }
        })
        .await
    }

    /// Sends it and says whether it went through, for servers that may be away.
    pub async fn try_status(request: RequestBuilder) -> Option<u16> {
        Some(request.send().await.ok()?.status().as_u16())
    }
}

impl Reply {
    /// The body of an answer that has to have this status.
    #[track_caller]
    pub fn expect(self, status: u16) -> Value {
        assert_eq!(self.status, status, "{}", self.text);
        self.body
    }

    /// Fails unless this is the one error shape with this status and code.
    #[track_caller]
    pub fn expect_error(&self, status: u16, code: &str) -> &Value {
        let error = &self.body["error"];
        assert_eq!((self.status, error["code"].as_str()), (status, Some(code)), "{}", self.text);
        assert!(error["message"].as_str().is_some_and(|message| !message.is_empty()), "{error}");
        assert!(error["retryable"].is_boolean(), "{error}");
        error
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }
}
