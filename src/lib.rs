//! Tandem keeps one person's devices in step.
//!
//! The modules in reading order, each importing only from those below it:
//!
//! | module | what it is |
//! |---|---|
//! | [`app`] | opens the seams, builds the services, mounts REST and Socket.IO |
//! | [`http`], [`socket`] | the two ways in; neither knows the other |
//! | [`records`] | one user's records out, the replaced server's in |
//! | [`sync`], [`mailbox`], [`devices`], [`auth`], [`hub`] | what happens with what came in |
//! | [`store`], [`backplane`] | the two seams: durable records, and the other nodes |
//! | [`merge`], [`model`], [`failure`], [`wire`] | pure: rules, words, errors, encodings |
//! | `simulation` | tests only: the cluster on virtual time |
//! | [`net`], [`drain`], [`limits`], [`telemetry`], [`config`] | the process around it |

pub mod app;
pub mod auth;
pub mod backplane;
pub mod config;
pub mod devices;
pub mod drain;
pub mod failure;
#[cfg(any(test, fuzzing))]
pub mod fuzzed;
pub mod health;
pub mod http;
pub mod hub;
pub mod limits;
pub mod mailbox;
pub mod merge;
pub mod model;
pub mod net;
pub mod records;
#[cfg(test)]
mod simulation;
pub mod socket;
pub mod store;
pub mod sync;
pub mod telemetry;
pub mod wire;
