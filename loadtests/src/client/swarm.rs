//! All devices of a run on one epoll. A scenario opens, cuts and sends; `turn` waits until something arrives or
//! an instant comes, and leaves what happened in order. It decides nothing about load.

use std::io::ErrorKind;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::ensure;
use mio::{Events, Interest, Poll, Token};

use super::clock::WakeUp;
use super::device::{Arrived, Device, Stage};
use super::target::Target;
use crate::scenario::plan::Placement;
use crate::wire::frame::{self, Parsed};
use crate::wire::handshake;
use crate::wire::mark::Marks;
use crate::wire::packet::{self, Packet};

const WAKE_UP: Token = Token(usize::MAX);
/// However far the next instant is, a signal to stop is seen within this.
const TURN_MAX: Duration = Duration::from_millis(200);

/// Who the devices are.
pub struct Crowd {
    pub target: Target,
    /// One for each user.
    pub tokens: Vec<String>,
    pub devices_per_user: usize,
    pub placement: Placement,
    pub marks: Arc<Marks>,
}

/// Something a device heard or met, at the instant its bytes were read.
#[derive(Debug)]
pub struct Happening {
    pub device: usize,
    pub at: Instant,
    pub what: What,
}

#[derive(Debug)]
pub enum What {
    /// `session-restored`: connected for good.
    Restored,
    /// An event of this run, by its number.
    Delivered(u64),
    Acked {
        id: u64,
        ok: bool,
    },
    /// An `error` event, or an ack that refuses, by its code.
    Refused(String),
    /// The connection is over, and not because the scenario cut it.
    Closed {
        was_live: bool,
        why: String,
    },
}

impl Happening {
    /// Whether a device that was connected is no longer.
    pub fn is_loss(&self) -> bool {
        matches!(self.what, What::Closed { was_live: true, .. })
    }
}

pub struct Swarm {
    pub devices: Vec<Device>,
    pub happened: Vec<Happening>,
    crowd: Crowd,
    poll: Poll,
    wake_up: WakeUp,
    stop: Arc<AtomicBool>,
    scratch: Vec<u8>,
    outgoing: Vec<u8>,
    mask: u32,
    numbers_taken: u64,
}

impl Swarm {
    pub fn new(crowd: Crowd, stop: Arc<AtomicBool>) -> anyhow::Result<Self> {
        let poll = Poll::new()?;
        let wake_up = WakeUp::register(poll.registry(), WAKE_UP)?;
        let nodes = crowd.target.nodes.len();
        let devices = (0..crowd.tokens.len() * crowd.devices_per_user)
            .map(|index| {
                let (user, nth) = (index / crowd.devices_per_user, index % crowd.devices_per_user);
                Device::new(user, crowd.placement.node(user, nth, nodes))
            })
            .collect();
        Ok(Self {
            devices,
            happened: Vec::new(),
            crowd,
            poll,
            wake_up,
            stop,
            scratch: vec![0; 64 << 10],
            outgoing: Vec::new(),
            mask: 0x9E37_79B9,
            numbers_taken: 0,
        })
    }

    pub fn marks(&self) -> Arc<Marks> {
        Arc::clone(&self.crowd.marks)
    }

    pub fn devices_per_user(&self) -> usize {
        self.crowd.devices_per_user
    }

    /// The first of `count` event numbers that nobody had before.
    pub fn take_numbers(&mut self, count: u64) -> u64 {
        let first = self.numbers_taken;
        self.numbers_taken += count;
        first
    }

    /// Begins to connect a device that is away.
    pub fn open(&mut self, index: usize) -> anyhow::Result<()> {
        let device = &mut self.devices[index];
        let address = self.crowd.target.nodes[device.node];
        let stream = device.dial(address)?;
        self.poll.registry().register(stream, Token(index), Interest::READABLE | Interest::WRITABLE)?;
        Ok(())
    }

    /// Ends a device's connection as a lost network does. Nothing is told about it.
    pub fn cut(&mut self, index: usize) {
        if let Some(mut stream) = self.devices[index].drop_connection() {
            // Closing the descriptor deregisters it too; a failure here changes nothing.
            let _ = self.poll.registry().deregister(&mut stream);
        }
    }

    /// Sends one Socket.IO packet now, or behind what still waits.
    pub fn send(&mut self, index: usize, packet: &[u8]) {
        self.send_frame(index, frame::TEXT, packet);
    }

    /// Waits for the first of: something arrives, `until` comes, 200 ms are over. Fills `happened`.
    ///
    /// # Errors
    /// The system's, or that the run was told to stop.
    pub fn turn(&mut self, until: Instant) -> anyhow::Result<()> {
        ensure!(!self.stop.load(Ordering::Relaxed), "stopped by a signal");
        let mut events = Events::with_capacity(256);
        let timeout = if until <= Instant::now() {
            Duration::ZERO
        } else {
            self.wake_up.arm(until)?;
            TURN_MAX
        };
        match self.poll.poll(&mut events, Some(timeout)) {
            Err(error) if error.kind() == ErrorKind::Interrupted => return Ok(()),
            polled => polled?,
        }
        for event in &events {
            match event.token() {
                WAKE_UP => self.wake_up.fired(),
                Token(index) => self.serve(index, event.is_writable()),
            }
        }
        Ok(())
    }

    fn serve(&mut self, index: usize, writable: bool) {
        if self.devices[index].stage == Stage::Dialing && !self.upgrade_if_connected(index) {
            return;
        }
        if writable && !self.devices[index].flush() {
            return self.closed(index, "write failed");
        }
        let mut scratch = std::mem::take(&mut self.scratch);
        loop {
            let filled = match self.devices[index].read(&mut scratch) {
                Arrived::Bytes(filled) => filled,
                Arrived::Nothing => break,
                Arrived::Gone => {
                    self.closed(index, "connection lost");
                    break;
                }
            };
            let used = self.take_in(index, &scratch[..filled], Instant::now());
            self.devices[index].keep(&scratch[used.min(filled)..filled]);
            // A short read emptied the socket: epoll tells when there is more.
            if filled < scratch.len() {
                break;
            }
        }
        self.scratch = scratch;
    }

    /// Whether reading makes sense by now.
    fn upgrade_if_connected(&mut self, index: usize) -> bool {
        match self.devices[index].is_connected() {
            Ok(false) => return false,
            Err(_) => {
                self.closed(index, "connection refused");
                return false;
            }
            Ok(true) => {}
        }
        // Its own name for every device: the server tells a device that comes back by it.
        let device_info = format!(r#"{{"name":"{}-{index}","type":"desktop"}}"#, self.crowd.marks.tag());
        let address = self.crowd.target.nodes[self.devices[index].node];
        if !self.devices[index].ask_upgrade(address, &device_info) {
            self.closed(index, "write failed");
        }
        true
    }

    /// Acts on all that is whole in `bytes` and says how much that was.
    fn take_in(&mut self, index: usize, bytes: &[u8], at: Instant) -> usize {
        let mut used = 0;
        if self.devices[index].stage == Stage::Upgrading {
            match self.take_upgrade(index, bytes) {
                Some(head_bytes) => used = head_bytes,
                None => return 0,
            }
        }
        while self.devices[index].stage != Stage::Away {
            match frame::from_server(&bytes[used..]) {
                Parsed::Whole(frame) => {
                    used += frame.size;
                    match frame.opcode {
                        frame::TEXT => self.take_message(index, frame.payload, at),
                        frame::PING => self.send_frame(index, frame::PONG, frame.payload),
                        frame::CLOSE => self.closed(index, "closed by the server"),
                        _ => {}
                    }
                }
                Parsed::Partial => break,
                Parsed::Broken(why) => self.closed(index, why),
            }
        }
        used
    }

    /// The size of the upgrade's answer, once it is whole and says yes.
    fn take_upgrade(&mut self, index: usize, bytes: &[u8]) -> Option<usize> {
        let head_bytes = handshake::head_end(bytes)?;
        let head = String::from_utf8_lossy(&bytes[..head_bytes]);
        match handshake::status(&head) {
            Some(101)
                if handshake::field(&head, "sec-websocket-accept") == Some(handshake::CLIENT_ACCEPT) =>
            {
                self.devices[index].stage = Stage::Joining;
                Some(head_bytes)
            }
            Some(101) => {
                self.closed(index, "upgrade with a wrong accept key");
                None
            }
            status => {
                self.closed(index, &format!("upgrade answered {}", status.unwrap_or(0)));
                None
            }
        }
    }

    fn take_message(&mut self, index: usize, message: &[u8], at: Instant) {
        match packet::parse(message) {
            Packet::Open => {
                let join = format!(r#"40{{"token":"{}"}}"#, self.crowd.tokens[self.devices[index].user]);
                self.send(index, join.as_bytes());
            }
            Packet::Ping => self.send(index, b"3"),
            Packet::Event { name, body } => self.take_event(index, name, body, at),
            Packet::Ack { id, body } => {
                let ok = packet::ack_is_ok(body);
                if !ok {
                    self.tell(index, at, What::Refused(packet::error_code(body)));
                }
                self.tell(index, at, What::Acked { id, ok });
            }
            Packet::Refused(body) => self.closed(index, &format!("refused: {}", packet::error_code(body))),
            Packet::Ended => self.closed(index, "ended by the server"),
            Packet::Connected | Packet::Other => {}
        }
    }

    fn take_event(&mut self, index: usize, name: &[u8], body: &[u8], at: Instant) {
        match name {
            b"realtime-event" | b"session-updated" | b"device-message" => {
                if let Some(number) = self.crowd.marks.find(body) {
                    self.tell(index, at, What::Delivered(number));
                }
            }
            b"session-restored" => {
                let device = &mut self.devices[index];
                device.device_id = restored_device_id(body).unwrap_or_default();
                device.stage = Stage::Live;
                self.tell(index, at, What::Restored);
            }
            b"error" => self.tell(index, at, What::Refused(packet::error_code(body))),
            _ => {}
        }
    }

    fn send_frame(&mut self, index: usize, opcode: u8, payload: &[u8]) {
        // Masks need not be secret on loopback, but the server shall unmask as it would for a browser.
        self.mask = self.mask.wrapping_mul(0x0019_660D).wrapping_add(0x3C6E_F35F);
        let mask = self.mask.to_be_bytes();
        if !self.devices[index].send_frame(opcode, payload, mask, &mut self.outgoing) {
            self.closed(index, "write failed");
        }
    }

    fn closed(&mut self, index: usize, why: &str) {
        let stage = self.devices[index].stage;
        if stage != Stage::Away {
            self.cut(index);
            self.tell(
                index,
                Instant::now(),
                What::Closed { was_live: stage == Stage::Live, why: why.to_owned() },
            );
        }
    }

    fn tell(&mut self, device: usize, at: Instant, what: What) {
        self.happened.push(Happening { device, at, what });
    }
}

/// `deviceId` of `["session-restored", {...}]`.
fn restored_device_id(body: &[u8]) -> Option<String> {
    #[derive(serde::Deserialize)]
    struct Restored {
        #[serde(rename = "deviceId")]
        device_id: String,
    }
    let (_, restored): (serde::de::IgnoredAny, Restored) = serde_json::from_slice(body).ok()?;
    Some(restored.device_id)
}
