//! Nothing of one user can be read, written, named or even detected by another.
//!
//! Many users live side by side on two nodes, and everything that they say carries a word of their own, the canary.
//! Then each tries the ids of all others on every route and every event, and must get exactly the answers that ids
//! of nobody get. In the end everything that any of them was ever told is searched for what is somebody else's.

mod leaks;
mod person;
mod probes;

use std::collections::BTreeSet;

use futures_util::future::join_all;
use serde_json::Value;

use crate::support::{Cluster, Env, Rest, short_or_long};
use leaks::Owners;
use person::Person;
use probes::{EVENTS_WITHOUT_IDS, ROUTES_WITHOUT_IDS, Victim};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_many_users_none_reads_writes_names_or_detects_what_is_anothers() {
    // 20,000 pairs and both their nodes take minutes; a few users have all pairs, too.
    let users = short_or_long(10, 100);
    let cluster = Cluster::start_with(2, &Env::new()).await;
    let people = join_all((0..users).map(|index| Person::settle(&cluster, index))).await;
    join_all(people.iter().map(Person::live)).await;
    let owners = Owners::of(&people);
    let victims = join_all(people.iter().map(Victim::of)).await;
    let before = join_all(people.iter().map(Person::records)).await;

    let trying = people.iter().enumerate().map(|(index, person)| {
        let others = victims.iter().enumerate().filter(move |(other, _)| *other != index);
        let others = others.map(|(_, victim)| victim);
        probes::try_everything(person, others)
    });
    let tried: BTreeSet<_> = join_all(trying).await.into_iter().flatten().collect();
    let twins = people.iter().zip(victims.iter().cycle().skip(1));
    join_all(twins.map(|(person, victim)| probes::come_as(&cluster, person, victim))).await;

    covers_every_route(&cluster.nodes[0].rest(), &tried).await;
    covers_every_event(&tried);
    for (person, before) in people.iter().zip(before) {
        assert_eq!(person.records().await, before, "somebody wrote what is {}'s", person.canary);
    }
    for person in &people {
        person.all_it_was_told().await.iter().for_each(|text| owners.only(&person.canary, text));
    }
    // Only now, as its news name the ids that each tried on messages of its own.
    join_all(people.iter().map(|person| person.nobody_meddled(&cluster))).await;
    for node in &cluster.nodes {
        owners.nobodys(&node.rest().get("/metrics").await.text);
        owners.nobodys(&node.rest().get("/api/health").await.text);
        leaks::without_canaries(&node.log());
    }
}

/// Every operation of the API's own description was tried, or takes no id of anything.
async fn covers_every_route(rest: &Rest, tried: &BTreeSet<String>) {
    let description = rest.get("/api/openapi.json").await.expect(200);
    let mut left = Vec::new();
    for (path, operations) in description["paths"].as_object().unwrap() {
        let methods = operations.as_object().unwrap().keys().map(|method| method.to_uppercase());
        for method in methods.filter(|method| ["GET", "PUT", "POST", "PATCH", "DELETE"].contains(&&**method))
        {
            let route = format!("{method} {path}");
            if !tried.contains(&route) && !ROUTES_WITHOUT_IDS.contains(&&*route) {
                left.push(route);
            }
        }
    }
    assert!(left.is_empty(), "nobody tried another's ids on {left:?}");
}

/// The same of the events that a client sends, by the document that lists them.
fn covers_every_event(tried: &BTreeSet<String>) {
    let document = include_str!("../../../docs/PROTOCOL.md");
    let section = document.split("## What a client sends").nth(1).unwrap();
    let rows = section.lines().skip_while(|line| !line.starts_with("|---")).skip(1);
    let rows = rows.take_while(|line| line.starts_with('|'));
    let events: Vec<_> = rows.map(|row| row.split('`').nth(1).unwrap()).collect();
    assert!(events.len() >= 7, "{events:?}");
    for event in events {
        assert!(tried.contains(event) || EVENTS_WITHOUT_IDS.contains(&event), "nobody tried {event}");
    }
}

/// `value` with what differs from call to call, and from user to user, taken out: only its shape may tell anything.
fn shape(value: &Value) -> Value {
    const VARIES: [&str; 8] =
        ["seq", "version", "versions", "epoch", "sentAt", "updatedAt", "expiresAt", "retryAfterMs"];
    match value {
        Value::Object(fields) => fields
            .iter()
            .map(|(name, value)| {
                let varies = VARIES.contains(&name.as_str()) && !value.is_null();
                (name.clone(), if varies { "*".into() } else { shape(value) })
            })
            .collect(),
        Value::Array(items) => items.iter().map(shape).collect(),
        other => other.clone(),
    }
}
