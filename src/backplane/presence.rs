//! The words of presence that both backplanes share: who holds which device of a user.
//!
//! Rows are fenced by connection id: removing an old connection's row changes nothing once a newer
//! connection of the device stands there.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::model::{ConnectionId, DeviceId, Epoch};

/// A node in one of its lives: `<node id>.<boot>`. A node that was taken for dead takes a new one.
pub type NodeLife = Arc<str>;

/// One device that is online.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Row {
    #[serde(rename = "n")]
    pub node: NodeLife,
    #[serde(rename = "c")]
    pub connection: ConnectionId,
    /// When it connected, Unix milliseconds; for people, never compared.
    #[serde(rename = "s")]
    pub since_ms: i64,
    /// The store's connection fence of the device: of two rows the higher one stands.
    #[serde(rename = "f")]
    pub fence: u64,
    /// The epoch that the fence counts in. Older nodes name none.
    #[serde(rename = "e", default, skip_serializing_if = "Option::is_none")]
    pub epoch: Option<Epoch>,
}

/// What a device's node says about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Online {
    pub connection: ConnectionId,
    pub since_ms: i64,
    pub fence: u64,
    pub epoch: Epoch,
}

/// The reason that a claimer gives for a device of a dead node.
pub const NODE_LOST: &str = "node_lost";

impl Online {
    pub(super) fn on(&self, node: &NodeLife) -> Row {
        Row {
            node: node.clone(),
            connection: self.connection,
            since_ms: self.since_ms,
            fence: self.fence,
            epoch: Some(self.epoch.clone()),
        }
    }
}

impl Row {
    /// Whether this row stays where `other` wants to stand, or `restores` that it
    /// did: then one with the same fence that came meanwhile stays, too. A fence of
    /// another epoch says nothing: after a database was put back, rows of before
    /// are higher than what comes.
    pub(super) fn outranks(&self, other: &Row, restores: bool) -> bool {
        let is_of_another_epoch = self.epoch.is_some() && self.epoch != other.epoch;
        self.connection != other.connection
            && !is_of_another_epoch
            && (self.fence > other.fence || (restores && self.fence == other.fence))
    }
}

/// What became of `presence_set`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Placed {
    /// The row stands, perhaps in another connection's place (which is to be told `replaced`).
    Stands { replaced: Option<Row> },
    /// A newer connection of the device was there first and stays.
    Fenced { by: Row },
}

/// A user's devices that are online.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Roster {
    pub rows: Vec<(DeviceId, Row)>,
    /// False without the other nodes: only this node's own connections are listed.
    pub complete: bool,
}
