//! The body of a request, and what becomes of the part that nobody read.
//!
//! A request may be refused before its body was read: for its token, its type,
//! its path. hyper would then end the connection under a client that still
//! sends, which may never see why. So the unread rest comes back here when the
//! service lets go of it, and is read and thrown away, in bounds, before the
//! answer goes out.

use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use tokio::time::Instant;

/// A body must have arrived by then, counted from its request's head.
pub const BODY_DEADLINE: Duration = Duration::from_secs(20);

/// Bytes that are read for nobody but the client, so that it gets to read the
/// answer.
const DISCARDED_BYTES_MAX: usize = 8 << 20;

/// A request's body. What is left of it when it is dropped can be had from
/// [`Rest`].
pub struct RequestBody {
    /// Nothing once it is dropped.
    body: Option<Incoming>,
    /// Somebody asked for it, which is when hyper tells a client that waits to go on.
    was_asked_for: bool,
    rest: Option<Arc<Mutex<Option<Unread>>>>,
}

struct Unread {
    body: Incoming,
    was_asked_for: bool,
}

/// What a request's service did not read of its body.
pub struct Rest {
    unread: Option<Arc<Mutex<Option<Unread>>>>,
    waits_to_be_asked: bool,
    deadline: Instant,
}

impl RequestBody {
    /// `body` as a service gets it. `waits_to_be_asked`: its client sends it only
    /// when told to (`Expect: 100-continue`, RFC 9110, 10.1.1).
    pub fn new(body: Incoming, waits_to_be_asked: bool) -> (Self, Rest) {
        let unread = (!body.is_end_stream()).then(Arc::default);
        let rest =
            Rest { unread: unread.clone(), waits_to_be_asked, deadline: Instant::now() + BODY_DEADLINE };
        (Self { body: Some(body), was_asked_for: false, rest: unread }, rest)
    }
}

impl Drop for RequestBody {
    fn drop(&mut self) {
        if let (Some(body), Some(rest)) = (self.body.take(), &self.rest)
            && !body.is_end_stream()
        {
            let unread = Unread { body, was_asked_for: self.was_asked_for };
            *rest.lock().unwrap_or_else(PoisonError::into_inner) = Some(unread);
        }
    }
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        self.was_asked_for = true;
        self.body.as_mut().map_or(Poll::Ready(None), |body| Pin::new(body).poll_frame(cx))
    }

    fn is_end_stream(&self) -> bool {
        self.body.as_ref().is_none_or(Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.body.as_ref().map_or_else(SizeHint::default, Body::size_hint)
    }
}

impl Rest {
    /// Reads the rest and throws it away; false when something is still on its
    /// way, and the connection good for nothing more.
    pub async fn discard(self) -> bool {
        let unread =
            self.unread.and_then(|unread| unread.lock().unwrap_or_else(PoisonError::into_inner).take());
        let Some(Unread { mut body, was_asked_for }) = unread else { return true };
        if self.waits_to_be_asked && !was_asked_for {
            return false;
        }
        let reading = async {
            let mut bytes = 0;
            while bytes <= DISCARDED_BYTES_MAX {
                match body.frame().await {
                    Some(Ok(frame)) => bytes += frame.data_ref().map_or(0, Bytes::len),
                    Some(Err(_)) => return false,
                    None => return true,
                }
            }
            false
        };
        tokio::time::timeout_at(self.deadline, reading).await.unwrap_or(false)
    }
}
