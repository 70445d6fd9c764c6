//! What a node has no room for.

use serde_json::Value;

use super::*;

const BOUNDS: Bounds = Bounds { namespace: 1000, node: 100_000, certain: 0 };

fn data(bytes: usize) -> Value {
    json!({ "data": { "k": "x".repeat(bytes) } })
}

fn naming(node: &str, config_maps: &[&str]) -> Value {
    let from: Vec<Value> =
        config_maps.iter().map(|name| json!({ "configMapRef": { "name": name } })).collect();
    json!({ "spec": { "nodeName": node, "containers": [{ "name": "c", "envFrom": from }] } })
}

impl Bench {
    /// Of what is said, that which is about config maps.
    fn said_of(&mut self, transaction: Transaction) -> Vec<String> {
        let mut said = self.apply(transaction);
        said.retain(|one| one.contains("configmaps"));
        said
    }
}

#[test]
fn what_has_no_room_is_withheld_and_sent_when_room_comes() {
    let mut bench = Bench::within(BOUNDS);
    for name in ["a", "b", "c"] {
        bench.put("configmaps", name, data(300));
    }
    assert_eq!(
        bench.put("pods", "p", naming("n1", &["a", "b", "c"])),
        [
            "n1 +configmaps a",
            "n1 +configmaps b",
            "n1 ~configmaps c",
            "n1 +namespaces default",
            "n1 +serviceaccounts default",
            "n1 +pods p"
        ]
    );
    assert_eq!(bench.needed_by("n1"), ["configmaps a", "configmaps b", "~configmaps c", "pods p"]);
    // Another node has room of its own.
    assert!(bench.put("pods", "r", naming("n2", &["c"])).contains(&"n2 +configmaps c".to_owned()));
    assert_eq!(bench.put("configmaps", "c", data(310)), ["n2 +configmaps c"]);
    bench.delete("pods", "r");
    // One is deleted, and one is new.
    assert_eq!(bench.delete("configmaps", "a"), ["n1 -configmaps a", "n1 +configmaps c"]);
    assert_eq!(bench.put("configmaps", "a", data(300)), ["n1 ~configmaps a"]);
    // One shrinks, and grows again.
    assert_eq!(bench.put("configmaps", "b", data(10)), ["n1 +configmaps b", "n1 +configmaps a"]);
    assert_eq!(bench.put("configmaps", "b", data(400)), ["n1 ~configmaps b"]);
    assert_eq!(bench.needed_by("n1"), ["configmaps a", "~configmaps b", "configmaps c", "pods p"]);
    // No pod names one any more.
    assert_eq!(bench.put("pods", "q", naming("n1", &["b"])), ["n1 +pods q"]);
    let fewer = bench.put("pods", "p", naming("n1", &["a"]));
    assert_eq!(fewer, ["n1 +pods p", "n1 -configmaps c", "n1 +configmaps b"]);
    // What shrinks itself fits.
    bench.put("configmaps", "b", data(900));
    assert_eq!(bench.put("configmaps", "b", data(100)), ["n1 +configmaps b"]);
    assert_eq!(bench.delete("pods", "p")[..2], ["n1 -pods p", "n1 -configmaps a"]);
}

#[test]
fn an_object_alone_beyond_the_room_is_withheld_and_told_of_before_the_pod() {
    let mut bench = Bench::within(BOUNDS);
    bench.put("pods", "p", naming("n1", &["late"]));
    assert_eq!(bench.put("configmaps", "late", data(2000)), ["n1 ~configmaps late"]);
    assert!(bench.put("configmaps", "late", data(2001)).is_empty(), "the node knows");
    assert_eq!(bench.delete("configmaps", "late"), ["n1 -configmaps late"]);
    assert_eq!(bench.put("configmaps", "late", data(200)), ["n1 +configmaps late"]);
}

#[test]
fn a_namespace_takes_from_no_other_what_it_could_have() {
    let mut bench = Bench::within(Bounds { namespace: 1000, node: 100_000, certain: 0 });
    for (namespace, name) in [("a", "1"), ("a", "2"), ("a", "3"), ("b", "1"), ("b", "2")] {
        bench.write(put_in(namespace, "configmaps", name, data(300)));
    }
    let names = |of: &[&str]| naming("n1", of);
    let said = bench.said_of(put_in("a", "pods", "p", names(&["1", "2", "3"])));
    assert_eq!(said, ["n1 +configmaps 1", "n1 +configmaps 2", "n1 ~configmaps 3"]);
    let said = bench.said_of(put_in("b", "pods", "p", names(&["1", "2"])));
    assert_eq!(said, ["n1 +configmaps 1", "n1 +configmaps 2"]);
    // The room of one is no other's.
    assert_eq!(bench.said_of(deletion_of("b", "configmaps", "1")), ["n1 -configmaps 1"]);
}

#[test]
fn a_node_that_is_nearly_full_keeps_a_part_for_who_comes_next() {
    let mut bench = Bench::within(Bounds { namespace: 100_000, node: 2000, certain: 0 });
    for namespace in ["w", "x", "y", "z"] {
        for name in ["1", "2", "3"] {
            bench.write(put_in(namespace, "configmaps", name, data(300)));
        }
    }
    let mut pod = |namespace| {
        let said = bench.said_of(put_in(namespace, "pods", "p", naming("n1", &["1", "2", "3"])));
        said.iter().filter(|one| one.contains('+')).count()
    };
    assert_eq!(["x", "y", "z", "w"].map(&mut pod), [2, 1, 1, 0]);
    bench.write(put_in("w", "configmaps", "4", data(10)));
    let said = bench.said_of(put_in("w", "pods", "q", naming("n1", &["4"])));
    assert_eq!(said, ["n1 ~configmaps 4"], "others of its own came first");
    // What its own have room for stays, and room goes to who has least.
    assert_eq!(bench.said_of(put_in("x", "configmaps", "1", data(299))), ["n1 +configmaps 1"]);
    let said = bench.said_of(deletion_of("x", "configmaps", "1"));
    assert_eq!(said, ["n1 -configmaps 1", "n1 +configmaps 1"], "the second is that of w");
    let withheld: Vec<String> =
        bench.routes.nodes["n1"].rooms.withheld().map(|key| key.name.to_string()).collect();
    assert_eq!(withheld, ["w/2", "w/3", "w/4", "x/3", "y/2", "y/3", "z/2", "z/3"]);
}

#[test]
fn a_new_leader_sends_first_what_the_older_pods_name() {
    let mut bench = Bench::within(BOUNDS);
    bench.put("configmaps", "a", data(600));
    bench.put("configmaps", "z", data(600));
    for (name, of, made) in [("first", "a", "2026-01-02T00:00:00Z"), ("last", "z", "2026-01-01T00:00:00Z")] {
        let mut pod = naming("n1", &[of]);
        pod["metadata"] = json!({ "name": name, "creationTimestamp": made });
        bench.put("pods", name, pod);
    }
    assert_eq!(bench.needed_by("n1"), ["configmaps a", "~configmaps z", "pods first", "pods last"]);
    bench.routes = Routes::within(Rooms { pods: room::OF_PODS, named: BOUNDS }, bench.store.view());
    assert_eq!(bench.needed_by("n1"), ["~configmaps a", "configmaps z", "pods first", "pods last"]);
    // It goes on from there.
    assert_eq!(bench.put("configmaps", "z", data(100)), ["n1 +configmaps z", "n1 +configmaps a"]);
}

#[test]
fn a_pod_without_room_is_withheld_and_sent_when_room_comes() {
    let heavy = |node: &str, containers: usize| {
        let containers: Vec<Value> = (0..containers).map(|at| json!({ "name": format!("c{at}") })).collect();
        json!({ "spec": { "nodeName": node, "containers": containers } })
    };
    let light = 20 << 10;
    let bounds = Bounds { namespace: 10 * light, node: 100 * light, certain: 0 };
    let mut bench = Bench::with(Rooms { pods: bounds, named: room::OF_NAMED });
    assert_eq!(bench.put("pods", "a", heavy("n1", 8)).last().unwrap(), "n1 +pods a");
    assert_eq!(bench.put("pods", "b", heavy("n1", 8)), ["n1 ~pods b"]);
    assert_eq!(bench.put("pods", "c", heavy("n1", 6)), ["n1 ~pods c"]);
    assert_eq!(bench.put("pods", "g", heavy("n1", 1)), ["n1 +pods g"], "nobody waits behind who has no room");
    bench.delete("pods", "g");
    assert_eq!(bench.needed_by("n1"), ["pods a", "~pods b", "~pods c"]);
    // Another node has room of its own, and another namespace.
    assert_eq!(bench.put("pods", "d", heavy("n2", 8)).last().unwrap(), "n2 +pods d");
    let said = bench.apply(put_in("other", "pods", "e", heavy("n1", 8)));
    assert_eq!(said.last().unwrap(), "n1 +pods e");
    // The node hears of the deletion of one that it has not, and what the node says of its own takes no room.
    let mut deleting = heavy("n1", 8);
    deleting["metadata"] = json!({ "name": "b", "deletionTimestamp": "2026-01-01T00:00:00Z" });
    assert_eq!(bench.put("pods", "b", deleting), ["n1 ~pods b"]);
    let mut told = heavy("n1", 8);
    told["status"] = json!({ "message": "x".repeat(4 * light) });
    assert_eq!(bench.put("pods", "a", told), ["n1 +pods a"]);
    assert_eq!(bench.put("pods", "c", heavy("n1", 1)), ["n1 ~pods c", "n1 +pods c"], "it shrinks");
    assert_eq!(bench.delete("pods", "b"), ["n1 -pods b"]);
    assert_eq!(bench.put("pods", "b", heavy("n1", 8)), ["n1 ~pods b"]);
    // It shrinks: there is room for the next.
    assert_eq!(bench.put("pods", "a", heavy("n1", 1)), ["n1 +pods a", "n1 +pods b"]);
    // Grown beyond the room it is the node's all the same, which has it: others wait the longer.
    assert_eq!(bench.put("pods", "c", heavy("n1", 8)), ["n1 +pods c"]);
    assert_eq!(bench.put("pods", "f", heavy("n1", 1)), ["n1 ~pods f"]);
    assert_eq!(bench.needed_by("n1"), ["pods a", "pods b", "pods c", "~pods f", "pods e"]);
    assert_eq!(bench.delete("pods", "c"), ["n1 -pods c", "n1 +pods f"]);
    // Nobody waits behind one that is too large alone.
    assert_eq!(bench.put("pods", "f", heavy("n1", 8)), ["n1 +pods f"]);
    assert_eq!(bench.put("pods", "huge", heavy("n1", 20)), ["n1 ~pods huge"]);
    assert_eq!(bench.delete("pods", "b"), ["n1 -pods b"]);
    assert_eq!(bench.put("pods", "c", heavy("n1", 1)), ["n1 +pods c"]);
    assert_eq!(bench.put("pods", "f", heavy("n1", 1)), ["n1 +pods f"]);
    assert_eq!(bench.put("pods", "huge", heavy("n1", 4)), ["n1 +pods huge"], "it shrinks");
    bench.delete("pods", "huge");
    // Another of the same name is another pod, which the node does not have.
    let mut other = heavy("n1", 13);
    other["metadata"] = json!({ "name": "f", "uid": "other" });
    assert_eq!(bench.put("pods", "f", other), ["n1 ~pods f"]);
    bench.delete("pods", "f");
    assert_eq!(bench.put("pods", "f", heavy("n1", 1)), ["n1 +pods f"]);
    assert_eq!(bench.put("pods", "b", heavy("n1", 8)), ["n1 +pods b"]);
    bench.routes = Routes::within(bench.routes.bounds, bench.store.view());
    assert_eq!(bench.needed_by("n1"), ["pods a", "pods b", "pods c", "pods f", "pods e"]);
    for (namespace, pods) in [("default", &["a", "b", "c", "d", "f"][..]), ("other", &["e"])] {
        pods.iter().for_each(|pod| drop(bench.apply(deletion_of(namespace, "pods", pod))));
    }
    assert!(bench.routes.nodes.is_empty() && bench.routes.stirred.is_empty());
}

/// Numbers that look random, from a seed.
struct Chance(u64);

impl Chance {
    fn below(&mut self, end: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % end
    }

    fn of<'a>(&mut self, all: &[&'a str]) -> &'a str {
        all[self.below(all.len())]
    }
}

const NAMESPACES_OF: [&str; 3] = ["a", "b", "c"];
const OBJECTS: [&str; 6] = ["1", "2", "3", "4", "5", "6"];
const NODES: [&str; 2] = ["n1", "n2"];

/// Something that changes.
fn any(chance: &mut Chance, view: &View) -> Transaction {
    let namespace = chance.of(&NAMESPACES_OF);
    let resource = chance.of(&["configmaps", "secrets", "pods"]);
    let name = chance.of(&OBJECTS);
    let is_there = view.get(&ObjectKey::new(resource, namespace, name)).is_some();
    if is_there && chance.below(4) == 0 {
        return deletion_of(namespace, resource, name);
    }
    let body = if resource == "pods" {
        let names: Vec<&str> = (0..chance.below(4)).map(|_| chance.of(&OBJECTS)).collect();
        let mut pod = naming(chance.of(&NODES), &names);
        pod["spec"]["imagePullSecrets"] = json!([{ "name": chance.of(&OBJECTS) }]);
        pod["spec"]["initContainers"] = vec![json!({ "name": "i" }); chance.below(5)].into();
        pod
    } else {
        data(chance.below(600))
    };
    put_in(namespace, resource, name, body)
}

/// What each node has by what it was told, and its size: None where it is withheld.
type Told = BTreeMap<(Arc<str>, ObjectKey), Option<usize>>;

fn hear(told: &mut Told, routed: Vec<Routed>, view: &View) {
    for Routed { to, key, change } in routed {
        let To::Nodes(nodes) = to else { continue };
        for node in nodes {
            match change {
                Change::Put | Change::PutBehind => {
                    // What is not there cannot be sent.
                    let Some(object) = view.get(&key) else { continue };
                    told.insert((node, key.clone()), Some(size(object)))
                }
                Change::Withheld => told.insert((node, key.clone()), None),
                Change::Deleted(_) => told.remove(&(node, key.clone())),
            };
        }
    }
}

fn size(object: &Object) -> usize {
    if object.key.resource.as_str() == PODS { weight::of_pod(object) } else { object.json.len() }
}

/// What its rooms hold is what is counted afresh, and nothing that comes next has room.
fn check_counts(routes: &Routes, view: &View) {
    let Rooms { named, .. } = routes.bounds;
    // Pods that were sent may grow beyond their bounds.
    let unbounded = Bounds { namespace: usize::MAX, node: usize::MAX, certain: 0 };
    for (node, own) in &routes.nodes {
        check_room(routes, node, (&own.rooms.named, named), counts, view);
        check_room(routes, node, (&own.rooms.pods, unbounded), |key| key.resource.as_str() == PODS, view);
    }
}

fn check_room(
    routes: &Routes,
    node: &str,
    (room, bounds): (&Room, Bounds),
    is_in: fn(&ObjectKey) -> bool,
    view: &View,
) {
    let mut sent: BTreeMap<Arc<str>, usize> = BTreeMap::new();
    for (key, change) in routes.needed_by(node, view).into_iter().filter(|(key, _)| is_in(key)) {
        let bytes = size(view.get(&key).unwrap());
        if change == Change::Put {
            *sent.entry(key.name.namespace).or_default() += bytes;
        }
    }
    let all: usize = sent.values().sum();
    let Bounds { namespace: most_of_one, node: most, .. } = bounds;
    assert!(all <= most && sent.values().all(|bytes| *bytes <= most_of_one), "{node}: {sent:?}");
    assert_eq!(room.sent(), sent.into_iter().collect::<Vec<_>>(), "{node}");
    for (namespace, bytes) in room.first_waiting() {
        assert!(!room.fits(&namespace, bytes), "{node}: {bytes} of {namespace}");
    }
}

#[test]
fn whatever_happens_a_new_link_is_sent_what_the_old_one_has() {
    for seed in 0..12 {
        let (mut chance, mut told) = (Chance(seed), Told::new());
        let pods = Bounds { namespace: 120 << 10, node: 240 << 10, certain: 0 };
        let named = Bounds { namespace: 1500, node: 3000, certain: 0 };
        let mut bench = Bench::with(Rooms { pods, named });
        for _ in 0..150 {
            let (before, had) = (bench.store.view().clone(), told.clone());
            let writes = 1 + chance.below(3);
            for _ in 0..writes {
                let transaction = any(&mut chance, bench.store.view());
                bench.write(transaction);
            }
            let now = bench.store.view().clone();
            let routed = bench.routes.catch_up(&before, &now);
            hear(&mut told, routed, &now);
            for node in NODES {
                let needed: BTreeMap<ObjectKey, bool> = bench
                    .routes
                    .needed_by(node, &now)
                    .into_iter()
                    .map(|(key, change)| (key, change == Change::Put))
                    .collect();
                let heard = told.iter().filter(|((of, _), _)| &**of == node);
                let heard: BTreeMap<ObjectKey, bool> =
                    heard.map(|((_, key), bytes)| (key.clone(), bytes.is_some())).collect();
                assert_eq!(needed, heard, "seed {seed}, node {node}");
            }
            check_counts(&bench.routes, &now);
            check_counts(&Routes::within(bench.routes.bounds, &now), &now);
            if writes == 1 {
                let taken = had.iter().filter(|(of, bytes)| bytes.is_some() && told.get(*of) == Some(&None));
                for ((_, key), bytes) in taken {
                    let now = size(now.get(key).unwrap());
                    assert!(Some(now) > *bytes, "seed {seed}: {key} was sent, and has not grown");
                }
            }
        }
    }
}

#[test]
fn room_that_comes_goes_to_who_has_least_and_who_has_little_loses_nothing() {
    let mut bench = Bench::within(Bounds { namespace: 100_000, node: 4000, certain: 0 });
    let names = ["1", "2", "3", "4", "5", "6"];
    for namespace in ["a0", "a1", "a2", "team"] {
        for name in names {
            bench.write(put_in(namespace, "configmaps", name, data(300)));
        }
    }
    let sent = |bench: &Bench, namespace: &str| {
        let sent = bench.routes.nodes["n1"].rooms.named.sent();
        sent.iter().find(|(of, _)| &**of == namespace).map_or(0, |(_, bytes)| *bytes)
    };
    bench.write(put_in("full", "configmaps", "1", data(1800)));
    for namespace in ["full", "a0", "a1", "a2", "team"] {
        bench.said_of(put_in(namespace, "pods", "p", naming("n1", &names)));
    }
    let before = ["a0", "a1", "a2"].map(|namespace| sent(&bench, namespace));
    assert_eq!(sent(&bench, "team"), 0, "{before:?}");
    bench.said_of(deletion_of("full", "configmaps", "1"));
    let all = ["a0", "a1", "a2", "team"].map(|namespace| sent(&bench, namespace));
    assert!(all[3] > 0 && all.iter().max().unwrap() - all[3] < 1000, "{all:?}");
    // Others leave nothing, and this one has no more than its part: it may edit what it has.
    let own = bench.said_of(put_in("team", "configmaps", "1", data(310)));
    assert_eq!(own, ["n1 +configmaps 1"]);
}

#[test]
fn pods_that_each_have_a_part_do_not_wait_for_each_other() {
    let mut bench = Bench::within(Bounds { namespace: 2000, node: 100_000, certain: 0 });
    let names = |of: &str, count: u32| -> Vec<String> { (0..count).map(|at| format!("{of}{at}")).collect() };
    let pods = [("p", 4, 300), ("q", 5, 300), ("r", 5, 290)];
    for (pod, count, bytes) in pods {
        for name in names(pod, count) {
            bench.put("configmaps", &name, data(bytes));
        }
    }
    for (pod, count, _) in pods {
        let names = names(pod, count);
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        bench.put("pods", pod, naming("n1", &names));
    }
    let withheld = |bench: &Bench, of: char| {
        bench.needed_by("n1").iter().filter(|one| one.starts_with(&format!("~configmaps {of}"))).count()
    };
    assert!(withheld(&bench, 'q') > 0 && withheld(&bench, 'r') > 0);
    bench.delete("pods", "p");
    assert_eq!(withheld(&bench, 'q'), 0, "who came first has all");
    bench.delete("pods", "q");
    assert_eq!(withheld(&bench, 'r'), 0);
}

#[test]
fn every_namespace_has_a_little_for_certain() {
    let mut bench = Bench::within(Bounds { namespace: 100_000, node: 2000, certain: 500 });
    bench.write(put_in("full", "configmaps", "1", data(850)));
    bench.said_of(put_in("full", "pods", "p", naming("n1", &["1"])));
    for namespace in ["a", "b", "c", "d", "e"] {
        bench.write(put_in(namespace, "configmaps", "1", data(200)));
        let said = bench.said_of(put_in(namespace, "pods", "p", naming("n1", &["1"])));
        assert_eq!(said, ["n1 +configmaps 1"], "{namespace}");
    }
}
