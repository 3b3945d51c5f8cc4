//! The bytes of the public protocol, as far as a load generator and the floor need them: WebSocket frames,
//! Engine.IO and Socket.IO packets, and the mark by which an event is recognised when it comes back.
//! Pure: bytes in, bytes out; sockets belong to `client`.

pub mod frame;
pub mod handshake;
pub mod mark;
pub mod packet;
