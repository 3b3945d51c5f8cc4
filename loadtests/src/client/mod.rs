//! Devices as raw sockets: thousands of WebSocket clients on one thread and one epoll, so that the generator
//! takes as little of the machine as can be from the server it measures.
//!
//! `target` says where the nodes are, `account` registers users, `device` is one connection's state machine,
//! `swarm` turns all of them and tells what happened, `clock` wakes it to the microsecond.

pub mod account;
pub mod clock;
pub mod device;
pub mod http;
pub mod swarm;
pub mod target;
