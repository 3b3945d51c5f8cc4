//! What every backplane promises, on memory, Redis and a Redis Cluster of six.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use crate::support::*;
use bytes::Bytes;
use tandem::backplane::*;
use tandem::model::*;

/// Runs each promise in all three worlds.
macro_rules! in_every_world {
    ($($promise:ident),+ $(,)?) => {
        mod memory { $(#[tokio::test] async fn $promise() { crate::promises::$promise(crate::support::World::memory()).await; })+ }
        mod redis { $(#[tokio::test] async fn $promise() { crate::promises::$promise(crate::support::World::redis().await).await; })+ }
        mod cluster { $(#[tokio::test] async fn $promise() { crate::promises::$promise(crate::support::World::cluster().await).await; })+ }
    };
}

in_every_world!(
    an_envelope_reaches_the_other_subscribed_nodes_only,
    client_json_arrives_byte_for_byte,
    envelopes_of_a_user_arrive_in_publishing_order,
    nothing_published_after_a_confirmed_subscribe_is_lost,
    after_unsubscribe_nothing_arrives,
    what_was_published_is_counted_though_nothing_follows,
    a_burst_of_5000_arrives_or_its_loss_is_told,
    a_hub_that_reads_nothing_is_told_what_it_missed,
    a_late_remove_of_an_old_connection_changes_nothing,
    an_older_connection_does_not_displace_a_newer_one,
    a_fence_of_another_epoch_keeps_nobody_out,
    a_dead_nodes_devices_are_announced_once_by_one_other,
    a_node_that_leaves_is_not_claimed,
    a_throttle_is_shared,
    a_snapshot_is_used_only_under_its_stamp,
);

async fn an_envelope_reaches_the_other_subscribed_nodes_only(world: World) {
    let (mut a, mut b, c) = (world.node("a").await, world.node("b").await, world.node("c").await);
    let (ann, bob) = (user(), user());
    for node in [&a, &b] {
        node.backplane.subscribe(ann).await.unwrap();
    }
    b.backplane.subscribe(bob).await.unwrap();

    a.backplane.publish(bob, &change(1));
    a.backplane.publish(ann, &change(2));
    b.backplane.publish(ann, &change(3));

    let mut at_b = [b.seq().await, b.seq().await];
    at_b.sort_by_key(|(_, seq)| *seq);
    assert_eq!(at_b, [(bob, 1), (ann, 2)]);
    assert_eq!(a.seq().await, (ann, 3), "not its own");
    assert_eq!((a.received(), b.received(), c.received()), (1, 2, 0));
}

async fn client_json_arrives_byte_for_byte(world: World) {
    let (a, mut b) = (world.node("a").await, world.node("b").await);
    let ann = user();
    b.backplane.subscribe(ann).await.unwrap();
    let mut sent = change(1);
    sent.trace = Some("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01".into());
    sent.payload = Some(Bytes::from_static(b"{ \"n\":  12345678901234567890.10,\n\"n\": \"\\u0000\" }"));

    a.backplane.publish(ann, &sent);

    assert_eq!(b.envelope().await, (ann, sent));
}

async fn envelopes_of_a_user_arrive_in_publishing_order(world: World) {
    let (a, mut b) = (world.node("a").await, world.node("b").await);
    let users: Vec<UserId> = (0..10).map(|_| user()).collect();
    for user in &users {
        b.backplane.subscribe(*user).await.unwrap();
    }

    for seq in 1..=200 {
        for user in &users {
            a.backplane.publish(*user, &change(seq));
        }
    }

    let mut last: HashMap<UserId, u64> = HashMap::new();
    for _ in 0..2000 {
        let (user, seq) = b.seq().await;
        assert_eq!(last.insert(user, seq).unwrap_or(0) + 1, seq);
    }
}

async fn nothing_published_after_a_confirmed_subscribe_is_lost(world: World) {
    let (a, mut b) = (world.node("a").await, world.node("b").await);
    for seq in 1..=500 {
        let ann = user();
        b.backplane.subscribe(ann).await.unwrap();

        a.backplane.publish(ann, &change(seq));

        assert_eq!(b.seq().await, (ann, seq));
    }
}

async fn after_unsubscribe_nothing_arrives(world: World) {
    let (a, mut b) = (world.node("a").await, world.node("b").await);
    let (ann, bob) = (user(), user());
    b.backplane.subscribe(ann).await.unwrap();
    b.backplane.unsubscribe(ann);
    // Confirmed behind the unsubscribe, so that one is done too.
    b.backplane.subscribe(bob).await.unwrap();

    a.backplane.publish(ann, &change(1));
    a.backplane.publish(bob, &change(2));

    assert_eq!(b.seq().await, (bob, 2));
    b.backplane.subscribe(ann).await.unwrap();
    a.backplane.publish(ann, &change(3));
    assert_eq!(b.seq().await, (ann, 3), "and it can come back");
}

async fn what_was_published_is_counted_though_nothing_follows(world: World) {
    let (a, mut b) = (world.node("a").await, world.node("b").await);
    let ann = user();
    b.backplane.subscribe(ann).await.unwrap();

    for seq in 1..=2 {
        a.backplane.publish(ann, &change(seq));
        assert_eq!(b.seq().await, (ann, seq));
    }

    until(|| {
        let counted = read(&a.observed.published) == 2;
        async move { counted }
    })
    .await;
}

async fn a_burst_of_5000_arrives_or_its_loss_is_told(world: World) {
    let (a, mut b) = (world.node("a").await, world.node("b").await);
    let ann = user();
    b.backplane.subscribe(ann).await.unwrap();

    for seq in 1..=5000 {
        a.backplane.publish(ann, &change(seq));
    }

    let mut got = 0;
    let mut told = false;
    while got < 5000 && !told {
        match within(b.inbound.recv()).await.unwrap() {
            Inbound::Envelope { .. } => got += 1,
            Inbound::Missed(_) => told = true,
            _ => {}
        }
    }
    assert!(got == 5000 || told, "{got} {:?}", b.observed);
    assert_eq!(read(&a.observed.dropped), 0);
}

async fn a_hub_that_reads_nothing_is_told_what_it_missed(world: World) {
    let a = world.node("a").await;
    let mut b = world.node_with("b", InboundLimits { messages_max: 100, bytes_max: 1 << 20 }).await;
    let (ann, bob) = (user(), user());
    b.backplane.subscribe(ann).await.unwrap();
    b.backplane.subscribe(bob).await.unwrap();

    for seq in 1..=100 {
        a.backplane.publish(ann, &change(seq));
    }
    until(|| {
        let filled = b.received() == 100;
        async move { filled }
    })
    .await;
    a.backplane.publish(bob, &change(1));
    let observed = b.observed.clone();
    until(|| {
        let overflowed = read(&observed.overflowed) == 1;
        async move { overflowed }
    })
    .await;

    b.notice(Inbound::Missed(Some(vec![bob]))).await;
}

async fn a_late_remove_of_an_old_connection_changes_nothing(world: World) {
    let (a, b) = (world.node("a").await, world.node("b").await);
    let (ann, phone) = (user(), DeviceId::fresh());
    let (old, new) = (online(1), online(2));
    a.backplane.presence_set(ann, phone, old.clone()).await.unwrap();

    let placed = b.backplane.presence_set(ann, phone, new.clone()).await.unwrap();

    let Placed::Stands { replaced: Some(replaced) } = placed else { panic!("{placed:?}") };
    assert_eq!((replaced.connection, replaced.node), (old.connection, a.backplane.node()));
    assert!(!a.backplane.presence_remove(ann, phone, old.connection).await.unwrap());
    let roster = a.backplane.presence_of(ann).await;
    assert!(roster.complete);
    assert_eq!(roster.rows.len(), 1);
    assert_eq!((roster.rows[0].0, roster.rows[0].1.connection), (phone, new.connection));
    assert!(b.backplane.presence_remove(ann, phone, new.connection).await.unwrap());
    assert_eq!(a.backplane.presence_of(ann).await.rows, []);
}

async fn an_older_connection_does_not_displace_a_newer_one(world: World) {
    let (a, b) = (world.node("a").await, world.node("b").await);
    let (ann, phone) = (user(), DeviceId::fresh());
    let newer = online(8);
    b.backplane.presence_set(ann, phone, newer.clone()).await.unwrap();

    let placed = a.backplane.presence_set(ann, phone, online(7)).await.unwrap();

    assert!(matches!(placed, Placed::Fenced { by } if by.connection == newer.connection));
    assert_eq!(a.backplane.presence_of(ann).await.rows[0].1.connection, newer.connection);
}

async fn a_fence_of_another_epoch_keeps_nobody_out(world: World) {
    let (a, b) = (world.node("a").await, world.node("b").await);
    let (ann, phone) = (user(), DeviceId::fresh());
    let before = online_in("the past that was put away", 8);
    b.backplane.presence_set(ann, phone, before.clone()).await.unwrap();

    let now = online_in("the present", 3);
    let placed = a.backplane.presence_set(ann, phone, now.clone()).await.unwrap();

    let Placed::Stands { replaced: Some(replaced) } = placed else { panic!("{placed:?}") };
    assert_eq!(replaced.connection, before.connection);
    let older = a.backplane.presence_set(ann, phone, online_in("the present", 2)).await.unwrap();
    assert!(matches!(older, Placed::Fenced { by } if by.connection == now.connection));
}

async fn a_dead_nodes_devices_are_announced_once_by_one_other(world: World) {
    let (dead, mut b, mut c) = (world.node("dead").await, world.node("b").await, world.node("c").await);
    let mut rows = HashMap::new();
    for _ in 0..200 {
        let (user, device, online) = (user(), DeviceId::fresh(), online(1));
        for node in [&b, &c] {
            node.backplane.subscribe(user).await.unwrap();
        }
        dead.backplane.presence_set(user, device, online.clone()).await.unwrap();
        rows.insert(user, (device, online.connection));
    }
    let spared = user();
    b.backplane.presence_set(spared, DeviceId::fresh(), online(1)).await.unwrap();

    world.crash(&dead);

    for node in [&mut b, &mut c] {
        let mut told = HashSet::new();
        for _ in 0..200 {
            let (user, envelope) = node.envelope().await;
            let Kind::Presence(event) = envelope.kind else { panic!("{envelope:?}") };
            assert_eq!((event.device, event.connection.unwrap()), rows[&user]);
            assert_eq!(
                (event.event, event.reason.as_deref()),
                (PresenceChange::Disconnected, Some(NODE_LOST))
            );
            assert!(event.at_ms > 1_700_000_000_000);
            assert!(told.insert(user), "told twice");
        }
    }
    assert!(!b.backplane.is_alive(&dead.backplane.node()).await.unwrap());
    let ann = *rows.keys().next().unwrap();
    assert_eq!(c.backplane.presence_of(ann).await.rows, []);
    assert_eq!(c.backplane.presence_of(spared).await.rows.len(), 1);
    if !world.is_memory() {
        let claims = [read(&b.observed.claimed_rows), read(&c.observed.claimed_rows)];
        assert_eq!(claims.iter().sum::<u64>(), 200, "{claims:?}");
    }
}

async fn a_node_that_leaves_is_not_claimed(world: World) {
    let (a, b) = (world.node("a").await, world.node("b").await);
    let ann = user();
    b.backplane.subscribe(ann).await.unwrap();
    a.backplane.presence_set(ann, DeviceId::fresh(), online(1)).await.unwrap();

    a.backplane.leave().await;

    assert_eq!(b.backplane.presence_of(ann).await.rows, []);
    assert!(!b.backplane.is_alive(&a.backplane.node()).await.unwrap());
    assert_eq!(b.received(), 0, "nothing announced for it");
}

async fn a_throttle_is_shared(world: World) {
    let (a, b) = (world.node("a").await, world.node("b").await);
    let rate = Rate { capacity: 4, per_second: 0.01 };
    let bucket = format!("login:{}", user());

    for node in [&a, &b, &a, &b] {
        assert_eq!(node.backplane.take_token(&bucket, rate).await, Taken::Allowed);
    }

    for node in [&a, &b] {
        let Taken::Limited { retry_after } = node.backplane.take_token(&bucket, rate).await else {
            panic!("allowed")
        };
        assert!(
            (Duration::from_secs(90)..=Duration::from_secs(100)).contains(&retry_after),
            "{retry_after:?}"
        );
    }
}

async fn a_snapshot_is_used_only_under_its_stamp(world: World) {
    let (a, b) = (world.node("a").await, world.node("b").await);
    let ann = user();
    let stamp = |epoch: &str, seq| Stamp { epoch: Epoch(epoch.into()), seq: Seq(seq) };
    let snapshot = Bytes::from_static(b"\x00\xff{}");

    a.backplane.snapshot_put(ann, &stamp("e", 7), snapshot.clone());

    if !world.is_memory() {
        until(|| async { b.backplane.snapshot_get(ann, &stamp("e", 7)).await.as_ref() == Some(&snapshot) })
            .await;
    }
    for other in [stamp("e", 8), stamp("e", 6), stamp("f", 7)] {
        assert_eq!(b.backplane.snapshot_get(ann, &other).await, None);
    }
}
