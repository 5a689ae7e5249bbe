//! Server-sent events: the body of a streamed answer.

use std::convert::Infallible;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::http::{HeaderValue, Response, header};
use futures_util::stream;
use serde::Serialize;
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::time::{Instant, Interval, MissedTickBehavior};

use crate::generate::Event;

/// A comment: whoever waits knows that somebody is there.
const PING: &[u8] = b": ping\n\n";

/// Longer ones cannot be added to a time.
const PING_INTERVAL_MAX: Duration = Duration::from_secs(365 * 24 * 60 * 60);

/// Appends a message.
pub(super) fn message(out: &mut Vec<u8>, object: &impl Serialize) {
    out.extend_from_slice(b"data: ");
    // Objects with text as keys, and numbers that are finite, always become JSON, which has no line breaks of its own.
    let _ = serde_json::to_writer(&mut *out, object);
    out.extend_from_slice(b"\n\n");
}

/// Appends the message that ends OpenAI's streams.
pub(super) fn done(out: &mut Vec<u8>) {
    out.extend_from_slice(b"data: [DONE]\n\n");
}

/// Turns events into messages.
pub(super) trait Messages: Send + 'static {
    /// Appends the messages of an event; `None`: the model's thread is gone. `true` if they are the last ones.
    fn add(&mut self, event: Option<Event>, out: &mut Vec<u8>) -> bool;
}

struct Stream<M> {
    messages: M,
    events: UnboundedReceiver<Event>,
    /// Sent before anything else.
    first: Vec<u8>,
    /// Every message moves it, but only when it is due: that costs nothing for each of them.
    pings: Interval,
    sent: Instant,
    is_over: bool,
}

/// A streamed answer: `first`, then what `messages` makes of the events, with comments in pauses of `ping_interval`.
pub(super) fn response(
    messages: impl Messages,
    first: Vec<u8>,
    events: UnboundedReceiver<Event>,
    ping_interval: Duration,
) -> Response<Body> {
    let ping_interval = ping_interval.min(PING_INTERVAL_MAX);
    let mut pings = tokio::time::interval_at(Instant::now() + ping_interval, ping_interval);
    pings.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let stream = Stream {
        messages,
        events,
        first,
        pings,
        sent: Instant::now(),
        is_over: false,
    };
    let body = stream::unfold(stream, |mut stream| async move {
        let bytes = stream.next().await?;
        Some((Ok::<_, Infallible>(Bytes::from(bytes)), stream))
    });
    let mut response = Response::new(Body::from_stream(body));
    let headers = response.headers_mut();
    for (name, value) in [
        (header::CONTENT_TYPE, "text/event-stream"),
        (header::CACHE_CONTROL, "no-cache"),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
    // Proxies that collect answers would hold tokens back.
    headers.insert("x-accel-buffering", HeaderValue::from_static("no"));
    response
}

impl<M: Messages> Stream<M> {
    /// The next messages: everything that is ready, so that a client that is behind gets it in one piece.
    async fn next(&mut self) -> Option<Vec<u8>> {
        if !self.first.is_empty() {
            return Some(std::mem::take(&mut self.first));
        }
        if self.is_over {
            return None;
        }
        let event = loop {
            tokio::select! {
                biased;
                event = self.events.recv() => break event,
                _ = self.pings.tick() => {
                    let period = self.pings.period();
                    let due = self.sent + period;
                    let now = Instant::now();
                    if now >= due {
                        self.sent = now;
                        return Some(PING.to_vec());
                    }
                    self.pings.reset_at(due);
                }
            }
        };
        let mut out = Vec::with_capacity(512);
        self.is_over = self.messages.add(event, &mut out);
        while !self.is_over
            && let Ok(event) = self.events.try_recv()
        {
            self.is_over = self.messages.add(Some(event), &mut out);
        }
        self.sent = Instant::now();
        Some(out)
    }
}
