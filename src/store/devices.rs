//! What the store is told, and tells, of devices that come, change and go.

use std::fmt;
use std::sync::Arc;

use crate::model::{
    BootId, ConnectionId, Description, DeviceId, DeviceInfo, JsonText, LoginId, Timestamp, UserId,
};

/// A device that connects.
#[derive(Clone, Debug)]
pub struct ConnectDevice {
    /// Whose.
    pub user: UserId,
    /// The login of its token; nothing for tokens of the replaced server.
    pub login: Option<LoginId>,
    /// When its token was made.
    pub issued_at: Timestamp,
    /// The device it says it is.
    pub claimed: Option<DeviceId>,
    /// What it says of itself.
    pub info: DeviceInfo,
    /// Devices that are connected somewhere: they are not up for resumption.
    pub online: Vec<DeviceId>,
    /// Runs of nodes that are alive: what their rows call connected, is.
    pub live_boots: Vec<BootId>,
    /// A row that another run left open belongs to a node that died, if that run
    /// has said nothing since then.
    pub dead_before: Timestamp,
    /// Connections whose rows are open but which proved to be dead. Not devices:
    /// somebody else may have come back as one of them since it was asked.
    pub let_go: Vec<ConnectionId>,
    /// Devices gone before this are not up for resumption either.
    pub resumable_since: Timestamp,
    /// The connection that will hold it.
    pub connection: ConnectionId,
    /// This run of this node.
    pub boot: BootId,
    /// When.
    pub at: Timestamp,
    /// Whether its client still waits for it when its turn has come.
    pub still_there: StillThere,
}

/// Asked by the store once nobody else can claim the same device first. That may be long after the
/// claim was made, and the client may have claimed it on another node since.
#[derive(Clone)]
pub struct StillThere(Arc<dyn Fn() -> bool + Send + Sync>);

impl StillThere {
    /// As `is_there` says at that moment.
    pub fn when(is_there: impl Fn() -> bool + Send + Sync + 'static) -> Self {
        Self(Arc::new(is_there))
    }

    /// Whether it is.
    pub fn holds(&self) -> bool {
        (self.0)()
    }
}

impl fmt::Debug for StillThere {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("StillThere(..)")
    }
}

/// What a connecting device got.
#[derive(Clone, Debug)]
pub struct Connected {
    /// Its identity.
    pub device: DeviceId,
    /// Counts the device's connections: of two the higher one stands.
    pub fence: u64,
    /// It is new to the store.
    pub fresh: bool,
    /// What is kept of it now.
    pub description: Description,
    /// It was known, and has said something new of itself.
    pub described_anew: bool,
    /// Devices dropped to make room for it.
    pub dropped: Vec<DeviceId>,
}

/// Why a device may not connect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConnectRefusal {
    /// The user or the login is gone.
    Unauthorized,
    /// The user revoked this device.
    DeviceRevoked,
    /// Its client may be gone; see [`StillThere`]. Nothing has changed.
    Gone,
}

/// A device whose connection ended.
#[derive(Clone, Debug)]
#[expect(missing_docs, reason = "each is what its name says")]
pub struct LeaveDevice {
    pub user: UserId,
    pub device: DeviceId,
    /// Only if the row still names this connection.
    pub connection: ConnectionId,
    pub at: Timestamp,
}

/// A connect whose outcome is unknown, and whose client was sent away: whatever
/// device the connection holds is offline. Once this is done, it holds none.
#[derive(Clone, Debug)]
#[expect(missing_docs, reason = "each is what its name says")]
pub struct LeaveConnection {
    pub user: UserId,
    pub connection: ConnectionId,
    pub at: Timestamp,
}

/// Changes what is kept of a device.
#[derive(Clone, Debug)]
#[expect(missing_docs, reason = "each is what its name says")]
pub struct UpdateDevice {
    pub user: UserId,
    pub device: DeviceId,
    /// Nothing: stays as it is.
    pub name: Option<String>,
    /// A JSON object; nothing: stays as it is.
    pub metadata: Option<JsonText>,
}

/// Revokes a device, and the login of its last connection unless another device
/// is online with it.
#[derive(Clone, Debug)]
#[expect(missing_docs, reason = "each is what its name says")]
pub struct RevokeDevice {
    pub user: UserId,
    pub device: DeviceId,
    /// Devices that are known to be online, on whatever node.
    pub online: Vec<DeviceId>,
    /// What a node's rows call connected, is, if the node wrote a beat later
    /// than this.
    pub beating_since: Timestamp,
    pub at: Timestamp,
}

/// A connection that goes on under another login of the same user.
#[derive(Clone, Debug)]
#[expect(missing_docs, reason = "each is what its name says")]
pub struct MoveDevice {
    pub user: UserId,
    pub device: DeviceId,
    /// Only if the row still names this connection.
    pub connection: ConnectionId,
    pub login: Option<LoginId>,
}
