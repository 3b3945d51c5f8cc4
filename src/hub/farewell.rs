//! How a node that goes away takes its leave: of its sockets, of whoever waits for them to come back, of the
//! other nodes.

use std::sync::Arc;
use std::time::Duration;

use super::{Ending, Hub, Member};

/// Clients of a stopping node that are not back elsewhere by then are announced as gone.
const GRACE_MAX: Duration = Duration::from_secs(5);

/// What that announcing may take.
const ANNOUNCE_WITHIN: Duration = Duration::from_secs(1);

/// How often a leaving node looks whether everybody is gone.
const EMPTY_LOOK_EVERY: Duration = Duration::from_millis(10);

impl Hub {
    /// Refuses new sockets, sends the open ones away spread over `window`, announces those that do not come
    /// back elsewhere and leaves presence. The listeners are closed once everybody was told to go.
    pub async fn farewell(&self, window: Duration) {
        self.0.tasks.refuse_sockets();
        self.send_away(window).await;
        self.0.tasks.close_listeners();
        // Clients that come back elsewhere within their grace were never gone; presence must know
        // until then where they were.
        if !self.emptied().await {
            tracing::warn!("not everybody's going was announced");
        }
        self.tell_the_rest();
        self.0.backplane.leave().await;
    }

    /// Ends everybody's connection, spread over `window`, whoever came first first.
    /// Whoever comes in meanwhile is ended by [`Hub::join`].
    async fn send_away(&self, window: Duration) {
        let everyone = self.everyone();
        let step = window / u32::try_from(everyone.len().max(1)).unwrap_or(u32::MAX);
        // Ticks that come late are made up for: the window does not grow with the load.
        let mut ticks = tokio::time::interval(step.max(Duration::from_micros(1)));
        for member in everyone {
            ticks.tick().await;
            member.recipient.end(Ending::Draining);
        }
        ticks.tick().await;
    }

    fn everyone(&self) -> Vec<Arc<Member>> {
        let mut everyone: Vec<_> = self.0.rooms.iter().flat_map(|room| room.value().members()).collect();
        everyone.sort_by_key(|member| member.connection);
        everyone
    }

    /// Waits until nobody is connected and everybody's going is announced. After
    /// [`GRACE_MAX`] nobody is given more time to come back; false when it still
    /// was not done [`ANNOUNCE_WITHIN`] later.
    async fn emptied(&self) -> bool {
        if self.is_clustered() {
            // Those who come back elsewhere within their grace were never gone.
            drop(tokio::time::timeout(GRACE_MAX, self.all_rooms_closed()).await);
        }
        self.0.hurry.cancel();
        let announced = async {
            self.all_rooms_closed().await;
            let mut looks = tokio::time::interval(EMPTY_LOOK_EVERY);
            while !self.nobody_is_untold() {
                looks.tick().await;
            }
        };
        tokio::time::timeout(ANNOUNCE_WITHIN, announced).await.is_ok()
    }

    async fn all_rooms_closed(&self) {
        let mut looks = tokio::time::interval(EMPTY_LOOK_EVERY);
        while !self.0.rooms.is_empty() {
            looks.tick().await;
        }
    }
}
