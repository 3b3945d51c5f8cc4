//! What an event of each kind looks like on the wire, who sends it, and what has to come back.

use crate::client::swarm::Swarm;

/// Keys a user's devices write; several, so that a session is more than one entry.
const SESSION_KEYS: usize = 8;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Traffic {
    /// `realtime-event` without ack, as the seed's clients send it.
    Relay,
    /// `session-update` with ack.
    Updates,
    /// `device-message` with ack, to the next device of the same user.
    Messages,
}

impl Traffic {
    pub fn asks_ack(self) -> bool {
        self != Self::Relay
    }

    /// How many devices have to hear of one event.
    pub fn deliveries(self, devices_per_user: usize) -> u8 {
        let others = u8::try_from(devices_per_user - 1).unwrap_or(u8::MAX);
        match self {
            Self::Relay | Self::Updates => others,
            Self::Messages => others.min(1),
        }
    }

    /// Writes the Socket.IO packet of event `number`, sent by device `sender`, into `packet`.
    pub fn compose(self, swarm: &Swarm, sender: usize, number: u64, filling: &str, packet: &mut Vec<u8>) {
        use std::io::Write;
        packet.clear();
        let marks = swarm.marks();
        let mark = marks.tag();
        let written = match self {
            Self::Relay => write!(
                packet,
                r#"42["realtime-event",{{"type":"load","payload":{{"mark":"{mark}:{number}","filling":"{filling}"}}}}]"#
            ),
            Self::Updates => write!(
                packet,
                r#"42{number}["session-update",{{"sessionKey":"load-{}","state":{{"mark":"{mark}:{number}","filling":"{filling}"}}}}]"#,
                sender % SESSION_KEYS
            ),
            Self::Messages => write!(
                packet,
                r#"42{number}["device-message",{{"targetDeviceId":"{}","message":{{"mark":"{mark}:{number}","filling":"{filling}"}}}}]"#,
                swarm.devices[next_of_user(sender, swarm.devices_per_user())].device_id
            ),
        };
        written.expect("writing to a vector cannot fail");
    }
}

/// The user's next device, which on several nodes is on another one.
fn next_of_user(device: usize, devices_per_user: usize) -> usize {
    let user = device / devices_per_user;
    user * devices_per_user + (device % devices_per_user + 1) % devices_per_user
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_stay_with_the_user() {
        assert_eq!(next_of_user(0, 4), 1);
        assert_eq!(next_of_user(3, 4), 0);
        assert_eq!(next_of_user(7, 4), 4);
        assert_eq!(next_of_user(5, 1), 5);
    }

    #[test]
    fn what_has_to_come_back() {
        assert_eq!(Traffic::Relay.deliveries(4), 3);
        assert_eq!(Traffic::Messages.deliveries(4), 1);
        assert_eq!(Traffic::Messages.deliveries(1), 0);
        assert!(!Traffic::Relay.asks_ack());
    }
}
