//! A connected device as the hub knows it: what it takes, and the words for how it ends.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;

use crate::model::{Change, Seq};
use crate::wire::Frame;

/// How long a device that seems connected has to answer a ping.
pub const PROBE_WAIT: Duration = Duration::from_millis(500);

/// One connected device, as the hub sees it.
pub trait Recipient: Send + Sync {
    /// Hands over one item; it never waits. Items pushed before
    /// [`Recipient::open`] are held back.
    fn push(&self, item: Item);

    /// Sends `restored` first, then what was held back. Changes up to `floor` are
    /// in the restore: they are dropped, also when they come later.
    fn open(&self, restored: Frame, floor: Seq);

    /// Asks whether somebody is there: false when nothing was heard for
    /// [`PROBE_WAIT`] after a ping.
    fn probe(&self) -> BoxFuture<'static, bool>;

    /// Whether it is known that nobody is there any more.
    fn is_closed(&self) -> bool;

    /// Whether nothing waits to be sent to it.
    fn has_room(&self) -> bool;

    /// Ends the connection.
    fn end(&self, why: Ending);
}

/// Something for one device.
#[derive(Clone, Debug)]
pub struct Item {
    /// What to send.
    pub frame: Frame,
    /// What may be done with it when the device falls behind.
    pub class: Class,
}

/// What may become of a waiting item.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Class {
    /// A session change: only a newer one of the same key may replace it.
    Change(Arc<Change>),
    /// Only the newest of a key waits.
    Coalesce(Arc<str>),
    /// What the device asked for; it is asked for no more than there is room for.
    Answer,
    /// Must be sent, or the connection ends.
    Plain,
}

/// Why the server ends a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// Another connection of the same device took over: the client is told and
    /// stays away.
    Replaced,
    /// The transport closes and the client comes back.
    ComeBack,
    /// The same, announced: this node is going away.
    Draining,
    /// Its login has ended: the client is told and stays away.
    LoginEnded,
    /// Its token has ended: the client is told and stays away until it has
    /// another.
    TokenExpired,
    /// The device was revoked: the client is told and stays away.
    DeviceRevoked,
}

/// Why a device is gone, as others hear it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gone {
    /// It said goodbye.
    ClientDisconnect,
    /// Its transport was closed.
    TransportClose,
    /// Its transport broke.
    TransportError,
    /// It answered no heartbeat.
    PingTimeout,
    /// The server closed it.
    ServerClose,
    /// The server closed it for good.
    ServerDisconnect,
}

impl Gone {
    /// Whether the connection ended on purpose, so that nobody waits for it.
    pub(super) fn is_final(self) -> bool {
        matches!(self, Gone::ClientDisconnect | Gone::ServerDisconnect)
    }

    /// The word on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            Gone::ClientDisconnect => "client disconnect",
            Gone::TransportClose => "transport close",
            Gone::TransportError => "transport error",
            Gone::PingTimeout => "ping timeout",
            Gone::ServerClose => "server close",
            Gone::ServerDisconnect => "server disconnect",
        }
    }
}
