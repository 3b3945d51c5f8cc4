//! What the backplane does when Redis, or the way to it, misbehaves.

use std::collections::{HashMap, HashSet};
use std::time::{Duration, Instant};

use crate::support::*;
use tandem::backplane::*;
use tandem::model::*;

/// The bound of docs: a hanging link is known as such within this.
const NOTICED_WITHIN: Duration = Duration::from_secs(5);

async fn subscribed_users(node: &Node, n: usize) -> Vec<UserId> {
    let users: Vec<UserId> = (0..n).map(|_| user()).collect();
    for user in &users {
        node.backplane.subscribe(*user).await.unwrap();
    }
    users
}

/// Publishes to each user until each was heard: while a link comes back a hint may be lost, a
/// subscription may not.
async fn all_hear(from: &Node, to: &mut Node, users: &[UserId], seq: u64) {
    let mut missing: HashSet<UserId> = users.iter().copied().collect();
    within(async {
        while !missing.is_empty() {
            for user in &missing {
                from.backplane.publish(*user, &change(seq));
            }
            let hearing = async {
                while !missing.is_empty() {
                    if let Inbound::Envelope { user, envelope } = to.inbound.recv().await.unwrap()
                        && seq_of(&envelope) == seq
                    {
                        missing.remove(&user);
                    }
                }
            };
            let _ = tokio::time::timeout(Duration::from_millis(500), hearing).await;
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_killed_connections_cost_no_subscription_and_mix_up_no_reply() {
    ten_kills(World::redis().await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_killed_connections_cost_no_subscription_on_a_cluster() {
    ten_kills(World::cluster().await).await;
}

async fn ten_kills(world: World) {
    let (mut a, mut b) = (world.node("a").await, world.node("b").await);
    let users = subscribed_users(&b, 400).await;
    let mut held = HashMap::new();
    for user in &users {
        let (device, online) = (DeviceId::fresh(), online(1));
        a.backplane.presence_set(*user, device, online.clone()).await.unwrap();
        held.insert(*user, (device, online.connection));
    }

    for round in 1..=10 {
        let asking = {
            let (backplane, held) = (a.backplane.clone(), held.clone());
            a.tasks.spawn(async move {
                let mut right = 0;
                for (user, (device, connection)) in held {
                    let roster = backplane.presence_of(user).await;
                    let rows: Vec<_> =
                        roster.rows.iter().map(|(device, row)| (*device, row.connection)).collect();
                    assert_eq!(rows, [(device, connection)], "another question's answer");
                    right += 1;
                }
                right
            })
        };
        for kind in ["pubsub", "normal"] {
            let kill = ["client", "kill", "type", kind];
            match &world {
                World::Redis(redis) => drop(redis.cli(&kill)),
                World::Cluster(cluster) => cluster.cli_all(&kill),
                World::Memory(_) => unreachable!(),
            }
        }
        b.notice(Inbound::Down).await;
        b.notice(Inbound::Up).await;
        a.up().await;

        all_hear(&a, &mut b, &users, round).await;
        assert_eq!(asking.await.unwrap(), users.len());
    }
    assert!(read(&b.observed.resubscribed) >= 10 * 400, "{:?}", b.observed);
    assert_eq!(read(&b.observed.decode_errors), 0);
}

#[tokio::test]
async fn who_may_have_missed_something_is_named_after_a_reconnect() {
    let World::Redis(redis) = World::redis().await else { unreachable!() };
    let mut b = Node::join(&redis.url(), settings("b", quick(), InboundLimits::default())).await;
    let users = subscribed_users(&b, 600).await;

    redis.cli(&["client", "kill", "type", "pubsub"]);

    let mut missing: HashSet<UserId> = users.into_iter().collect();
    while !missing.is_empty() {
        match within(b.inbound.recv()).await.unwrap() {
            Inbound::Missed(Some(users)) => missing.retain(|user| !users.contains(user)),
            Inbound::Missed(None) => missing.clear(),
            _ => {}
        }
    }
}

#[tokio::test]
async fn a_subscribe_is_confirmed_by_the_server_also_over_a_slow_line() {
    let redis = RedisServer::start().await;
    let line = Proxy::slow_to(redis.port, Duration::from_millis(20)).await;
    let a = Node::join(&redis.url(), settings("a", quick(), InboundLimits::default())).await;
    let mut b = Node::join(&line.url(), settings("b", quick(), InboundLimits::default())).await;
    for seq in 1..=20 {
        let ann = user();
        b.backplane.subscribe(ann).await.unwrap();

        a.backplane.publish(ann, &change(seq));

        assert_eq!(b.seq().await, (ann, seq));
    }
}

#[tokio::test]
async fn poison_on_a_channel_is_dropped_and_counted() {
    let world = World::redis().await;
    let World::Redis(redis) = &world else { unreachable!() };
    let (a, mut b) = (world.node("a").await, world.node("b").await);
    let (ann, bob) = (user(), user());
    b.backplane.subscribe(ann).await.unwrap();
    b.backplane.subscribe(bob).await.unwrap();
    let channel = format!("tandem:{{{ann}}}");
    let folder = std::env::temp_dir().join(format!("tandem-poison-{}", user()));
    std::fs::write(&folder, vec![b'{'; 10 << 20]).unwrap();
    let publish = |body: &str| drop(redis.cli(&["publish", &channel, body]));

    publish("garbage");
    publish("");
    publish("{}\n{}");
    publish(r#"{"v":1,"n":"x","k":"change","b":{"seq":"seven"}}"#);
    publish("{\"v\":9,\"n\":\"x\",\"k\":\"change\",\"b\":{}}\n");
    publish("{\"v\":1,\"n\":\"x\",\"k\":\"teleport\",\"b\":{}}\n");
    let large = format!("redis-cli -p {} -x publish '{channel}' < {}", redis.port, folder.display());
    std::process::Command::new("sh").args(["-c", &large]).output().unwrap();
    publish(&format!(
        "{{\"v\":1,\"n\":\"x\",\"user\":\"{bob}\",\"k\":\"heads-moved\",\"b\":{{\"what\":\"session\",\"user\":\"{bob}\"}}}}\n"
    ));
    a.backplane.publish(bob, &change(1));

    let mut first = b.envelope().await;
    let mut second = b.envelope().await;
    if first.0 == bob {
        std::mem::swap(&mut first, &mut second);
    }
    assert_eq!(first.0, ann, "the channel says whose it is");
    assert_eq!(first.1.kind, Kind::HeadsMoved(HeadsMoved { what: Head::Session, device: None }));
    assert_eq!((second.0, seq_of(&second.1)), (bob, 1));
    assert_eq!((read(&b.observed.decode_errors), read(&b.observed.unknown)), (5, 2));
    std::fs::remove_file(folder).unwrap();
}

#[tokio::test]
async fn a_stopped_redis_is_noticed_within_5_s_and_back_when_it_goes_on() {
    let world = World::redis().await;
    let World::Redis(redis) = &world else { unreachable!() };
    let proxy = Proxy::to(redis.port).await;
    let timing = Timing { join_within: LONG, ..Timing::default() };
    let mut a = Node::join(&redis.url(), settings("a", timing, InboundLimits::default())).await;
    let mut b = Node::join(&proxy.url(), settings("b", timing, InboundLimits::default())).await;
    let users = subscribed_users(&b, 50).await;

    redis.signal("-STOP");
    let stopped = Instant::now();
    b.notice(Inbound::Down).await;
    println!("SIGSTOP noticed after {:?}", stopped.elapsed());
    assert!(stopped.elapsed() < NOTICED_WITHIN, "{:?}", stopped.elapsed());

    let asked = Instant::now();
    assert!(b.backplane.subscribe(user()).await.is_err());
    assert!(b.backplane.presence_set(users[0], DeviceId::fresh(), online(1)).await.is_err());
    assert!(!b.backplane.presence_of(users[0]).await.complete);
    let rate = Rate { capacity: 1, per_second: 1.0 };
    assert_eq!(b.backplane.take_token("x", rate).await, Taken::Allowed);
    assert!(
        asked.elapsed() < Duration::from_secs(1),
        "nobody waits for a link that is down: {:?}",
        asked.elapsed()
    );
    for seq in 0..40_000 {
        a.backplane.publish(users[0], &change(seq));
    }
    assert!(read(&a.observed.dropped) > 0, "the queue is bounded");

    // Until all three connections were given up and are being made anew.
    within(proxy.accepted(6)).await;
    redis.signal("-CONT");
    let back = Instant::now();
    b.notice(Inbound::Up).await;
    println!("back after {:?}", back.elapsed());
    a.up().await;
    all_hear(&a, &mut b, &users, 1_000_000).await;
}

#[tokio::test]
async fn a_link_cut_without_a_fin_is_noticed_within_5_s() {
    let redis = RedisServer::start().await;
    let proxy = Proxy::to(redis.port).await;
    let timing = Timing { join_within: LONG, ..Timing::default() };
    let a = Node::join(&redis.url(), settings("a", timing, InboundLimits::default())).await;
    let mut b = Node::join(&proxy.url(), settings("b", timing, InboundLimits::default())).await;
    let users = subscribed_users(&b, 50).await;

    proxy.silence();
    let cut = Instant::now();
    b.notice(Inbound::Down).await;
    println!("half-open link noticed after {:?}", cut.elapsed());
    assert!(cut.elapsed() < NOTICED_WITHIN);

    proxy.heal();
    let healed = Instant::now();
    b.notice(Inbound::Up).await;
    println!("back after {:?}", healed.elapsed());
    all_hear(&a, &mut b, &users, 1).await;
}

#[tokio::test]
async fn a_node_starts_without_redis_and_joins_when_it_comes() {
    let mut redis = RedisServer::start().await;
    redis.kill();
    let timing = Timing { join_within: Duration::from_millis(100), ..quick() };
    let a = Node::join(&redis.url(), settings("a", timing, InboundLimits::default())).await;
    let mut b = Node::join(&redis.url(), settings("b", timing, InboundLimits::default())).await;
    let (ann, phone) = (user(), DeviceId::fresh());
    assert!(b.backplane.subscribe(ann).await.is_err());
    assert!(b.backplane.presence_set(ann, phone, online(1)).await.is_err());

    redis.restart().await;

    b.notice(Inbound::Up).await;
    let mut a = a;
    a.up().await;
    all_hear(&a, &mut b, &[ann], 1).await;
    until(|| async { a.backplane.presence_of(ann).await.rows.len() == 1 }).await;
}

#[tokio::test]
async fn redis_killed_and_restarted_is_joined_again_with_all_rows() {
    let mut redis = RedisServer::start().await;
    let mut a = Node::join(&redis.url(), settings("a", quick(), InboundLimits::default())).await;
    let mut b = Node::join(&redis.url(), settings("b", quick(), InboundLimits::default())).await;
    let users = subscribed_users(&b, 300).await;
    for user in &users {
        b.backplane.presence_set(*user, DeviceId::fresh(), online(1)).await.unwrap();
    }

    for round in 1..=3 {
        redis.kill();
        b.notice(Inbound::Down).await;
        redis.restart().await;
        b.notice(Inbound::Up).await;
        a.up().await;
        all_hear(&a, &mut b, &users, round).await;
        for user in &users {
            until(|| async { a.backplane.presence_of(*user).await.rows.len() == 1 }).await;
        }
    }
    assert_eq!((read(&a.observed.claimed_rows), read(&b.observed.claimed_rows)), (0, 0));
}

#[tokio::test]
async fn after_flushall_the_rows_are_back_and_nobody_is_announced() {
    let world = World::redis().await;
    let World::Redis(redis) = &world else { unreachable!() };
    let (mut a, b) = (world.node("a").await, world.node("b").await);
    let users = subscribed_users(&a, 100).await;
    for user in &users {
        b.backplane.presence_set(*user, DeviceId::fresh(), online(1)).await.unwrap();
    }

    redis.cli(&["flushall"]);

    for user in &users {
        until(|| async { a.backplane.presence_of(*user).await.rows.len() == 1 }).await;
    }
    all_hear(&b, &mut a, &users, 1).await;
    assert_eq!(a.received(), 100, "only what was published");
}

#[tokio::test]
async fn a_node_that_was_taken_for_dead_comes_back_under_a_new_name() {
    let redis = RedisServer::start().await;
    let proxy = Proxy::to(redis.port).await;
    let mut asleep = Node::join(&proxy.url(), settings("asleep", quick(), InboundLimits::default())).await;
    let mut b = Node::join(&redis.url(), settings("b", quick(), InboundLimits::default())).await;
    let (ann, phone, held) = (user(), DeviceId::fresh(), online(1));
    b.backplane.subscribe(ann).await.unwrap();
    asleep.backplane.presence_set(ann, phone, held.clone()).await.unwrap();
    let before = asleep.backplane.node();

    proxy.silence();
    let (_, gone) = b.envelope().await;
    let Kind::Presence(gone) = gone.kind else { panic!() };
    assert_eq!((gone.event, gone.connection), (PresenceChange::Disconnected, Some(held.connection)));
    assert_eq!(b.backplane.presence_of(ann).await.rows, []);
    proxy.heal();

    let back = within(async {
        loop {
            if let Inbound::Reinstated(rows) = asleep.inbound.recv().await.unwrap() {
                return rows;
            }
        }
    })
    .await;
    assert_eq!(back.len(), 1);
    assert_eq!((back[0].0, back[0].1, back[0].2.connection), (ann, phone, held.connection));
    let roster = b.backplane.presence_of(ann).await;
    assert_eq!(roster.rows[0].1.node, asleep.backplane.node());
    assert_ne!(before, asleep.backplane.node());
    assert!(b.backplane.is_alive(&asleep.backplane.node()).await.unwrap());
}

#[tokio::test]
async fn rows_that_come_back_in_two_attempts_are_all_announced_again() {
    let redis = RedisServer::start().await;
    let proxy = Proxy::to(redis.port).await;
    let mut asleep = Node::join(&proxy.url(), settings("asleep", quick(), InboundLimits::default())).await;
    let b = Node::join(&redis.url(), settings("b", quick(), InboundLimits::default())).await;
    let mut held = HashSet::new();
    for _ in 0..20 {
        let (user, device, online) = (user(), DeviceId::fresh(), online(1));
        asleep.backplane.presence_set(user, device, online.clone()).await.unwrap();
        held.insert((user, online.connection));
    }
    proxy.silence();
    let users: Vec<UserId> = held.iter().map(|(user, _)| *user).collect();
    for user in &users {
        until(|| async { b.backplane.presence_of(*user).await.rows.is_empty() }).await;
    }

    // One of them cannot be written, until it can.
    let broken = format!("tandem:presence:{{{}}}", users[0]);
    redis.cli(&["set", &broken, "no hash"]);
    proxy.heal();
    until(|| async { b.backplane.presence_of(users[1]).await.rows.len() == 1 }).await;
    redis.cli(&["del", &broken]);

    let mut back = HashSet::new();
    within(async {
        while back != held {
            if let Inbound::Reinstated(rows) = asleep.inbound.recv().await.unwrap() {
                back.extend(rows.into_iter().map(|(user, _, row)| (user, row.connection)));
            }
        }
    })
    .await;
}

#[tokio::test]
async fn a_node_that_could_not_remove_a_row_at_first_still_leaves_in_good_order() {
    let redis = RedisServer::start().await;
    let mut a = Node::join(&redis.url(), settings("a", quick(), InboundLimits::default())).await;
    let (ann, phone, held) = (user(), DeviceId::fresh(), online(1));
    a.backplane.presence_set(ann, phone, held.clone()).await.unwrap();
    let (rows, life) = (format!("tandem:presence:{{{ann}}}"), a.backplane.node());
    let users = format!("tandem:life:{{{life}}}:users");

    redis.cli(&["rename", &rows, "aside"]);
    redis.cli(&["set", &rows, "no hash"]);
    assert!(a.backplane.presence_remove(ann, phone, held.connection).await.is_err());
    assert_eq!(redis.cli(&["scard", &users]), "1", "it may have a row");
    redis.cli(&["rename", "aside", &rows]);
    assert!(a.backplane.presence_remove(ann, phone, held.connection).await.unwrap());
    assert_eq!(redis.cli(&["scard", &users]), "0");
    a.up().await;
    a.backplane.leave().await;

    assert_eq!(redis.cli(&["smembers", "tandem:nodes"]), "", "nobody has to claim it");
}

#[tokio::test]
async fn a_claimer_that_dies_is_followed_by_the_next_and_nothing_is_told_twice() {
    let world = World::redis().await;
    let (dead, b, mut c) = (world.node("dead").await, world.node("b").await, world.node("c").await);
    let mut users = HashSet::new();
    for _ in 0..2_000 {
        let user = user();
        c.backplane.subscribe(user).await.unwrap();
        dead.backplane.presence_set(user, DeviceId::fresh(), online(1)).await.unwrap();
        users.insert(user);
    }

    world.crash(&dead);
    let mut told = HashSet::new();
    while told.len() < users.len() {
        let (user, _) = c.envelope().await;
        assert!(told.insert(user), "told twice");
        if told.len() == 100 && read(&b.observed.claimed_rows) > 0 {
            world.crash(&b);
        }
    }
}

#[tokio::test]
async fn a_cluster_that_fails_over_or_moves_a_slot_keeps_every_subscription() {
    let world = World::cluster().await;
    let World::Cluster(cluster) = &world else { unreachable!() };
    let (mut a, mut b) = (world.node("a").await, world.node("b").await);
    let users = subscribed_users(&b, 300).await;
    all_hear(&a, &mut b, &users, 1).await;

    // A slot moves by hand; nothing is disconnected.
    let ann = users[0];
    let channel = format!("tandem:{{{ann}}}");
    let slot = cluster.nodes[0].cli(&["cluster", "keyslot", &channel]);
    let from = cluster.owner_of(&channel);
    let to = (0..6).find(|n| *n != from && cluster.nodes[*n].cli(&["role"]).starts_with("master")).unwrap();
    for node in &cluster.nodes {
        node.cli(&["cluster", "setslot", &slot, "node", &cluster.id_of(to)]);
    }
    all_hear(&a, &mut b, &[ann], 2).await;

    // And a master hands over to its replica.
    let replica = (0..6).find(|n| cluster.nodes[*n].cli(&["role"]).starts_with("slave")).unwrap();
    assert_eq!(cluster.nodes[replica].cli(&["cluster", "failover"]), "OK");
    until(|| {
        let master = cluster.nodes[replica].cli(&["role"]).starts_with("master");
        async move { master }
    })
    .await;
    all_hear(&a, &mut b, &users, 3).await;
    a.up().await;
    b.up().await;
}

#[tokio::test]
async fn an_acl_user_and_a_database_number_in_the_url_are_used() {
    let redis = RedisServer::start().await;
    let rule = ["acl", "setuser", "tandem", "on", ">s3cret", "~tandem:*", "&tandem:*", "+@all"];
    assert_eq!(redis.cli(&rule), "OK");
    redis.cli(&["acl", "setuser", "default", "off"]);
    let url = format!("redis://tandem:s3cret@127.0.0.1:{}/3", redis.port);
    let a = Node::join(&url, settings("a", quick(), InboundLimits::default())).await;
    let mut b = Node::join(&url, settings("b", quick(), InboundLimits::default())).await;
    let users = subscribed_users(&b, 3).await;

    all_hear(&a, &mut b, &users, 1).await;
    a.backplane.presence_set(users[0], DeviceId::fresh(), online(1)).await.unwrap();

    let wrong = url.replace("s3cret", "wrong");
    let timing = Timing { join_within: Duration::from_millis(300), ..quick() };
    let c = Node::join(&wrong, settings("c", timing, InboundLimits::default())).await;
    assert!(!c.backplane.is_up());
    let refused = backplane_error("redis://:hidden-secret@[").await;
    assert!(!refused.contains("hidden-secret"), "{refused}");
}

async fn backplane_error(url: &str) -> String {
    let settings = settings("x", quick(), InboundLimits::default());
    open(Some(url), settings).await.err().map(|error| error.to_string()).unwrap_or_default()
}

#[tokio::test]
async fn sentinel_leads_to_the_master_also_after_a_failover() {
    let mut sentinels = Sentinels::start().await;
    let mut a = Node::join(&sentinels.url(), settings("a", quick(), InboundLimits::default())).await;
    let mut b = Node::join(&sentinels.url(), settings("b", quick(), InboundLimits::default())).await;
    let users = subscribed_users(&b, 20).await;
    all_hear(&a, &mut b, &users, 1).await;

    sentinels.master.kill();
    b.notice(Inbound::Down).await;
    b.notice(Inbound::Up).await;
    a.up().await;

    all_hear(&a, &mut b, &users, 2).await;
    assert!(sentinels.replica.cli(&["role"]).starts_with("master"));
}

#[tokio::test]
async fn a_node_that_stops_sends_what_waits_and_ends_its_tasks() {
    let world = World::redis().await;
    let World::Redis(redis) = &world else { unreachable!() };
    let (a, mut b) = (world.node("a").await, world.node("b").await);
    let ann = user();
    b.backplane.subscribe(ann).await.unwrap();

    for seq in 1..=1000 {
        a.backplane.publish(ann, &change(seq));
    }
    a.stop.cancel();
    a.tasks.close();
    within(a.tasks.wait()).await;

    for seq in 1..=1000 {
        assert_eq!(b.seq().await, (ann, seq));
    }
    redis.signal("-STOP");
    b.backplane.publish(ann, &change(1));
    b.stop.cancel();
    b.tasks.close();
    let stopping = Instant::now();
    within(b.tasks.wait()).await;
    assert!(stopping.elapsed() < Duration::from_secs(3), "also when Redis hangs: {:?}", stopping.elapsed());
}

#[tokio::test]
async fn a_row_of_a_life_without_a_heartbeat_keeps_nobody_out() {
    let world = World::redis().await;
    let World::Redis(redis) = &world else { unreachable!() };
    let a = world.node("a").await;
    let (ann, phone, theirs) = (user(), DeviceId::fresh(), online(9));
    // Of a node that nobody lists any more, so nobody will claim it.
    let row = format!(r#"{{"n":"dead.1","c":"{}","s":1,"f":9,"e":"epoch"}}"#, theirs.connection);
    redis.cli(&["hset", &format!("tandem:presence:{{{ann}}}"), &phone.to_string(), &row]);

    let ours = online(1);
    until(|| async {
        let placed = a.backplane.presence_set(ann, phone, ours.clone()).await.unwrap();
        matches!(placed, Placed::Stands { .. })
    })
    .await;

    assert_eq!(a.backplane.presence_of(ann).await.rows[0].1.connection, ours.connection);
}
