//! Who gets how many seats.

use super::*;

fn fill(pod: &Arc<PodSeats>, weight: u32) -> (Vec<Arc<Share>>, NoSeat) {
    let mut taken = Vec::new();
    loop {
        match pod.admit(weight) {
            Ok(share) => taken.push(share),
            Err(full) => return (taken, full),
        }
    }
}

fn requests(share: &Arc<Share>) -> (Vec<Seat>, NoSeat) {
    let mut taken = Vec::new();
    loop {
        match share.take() {
            Ok(seat) => taken.push(seat),
            Err(full) => return (taken, full),
        }
    }
}

fn namespace(name: &str) -> Arc<str> {
    name.into()
}

#[test]
fn one_pod_and_one_namespace_leave_seats_for_others() {
    let seats = Seats::new(800);
    let (greedy, other) = (namespace("greedy"), namespace("other"));
    let pod = seats.pod(&greedy);
    let (alone, full) = fill(&pod, 1);
    assert_eq!((alone.len(), full.0.bound), (350, Bound::PodShare), "a pod has at most half of 700");
    let mut pods = Vec::new();
    let full = loop {
        let pod = seats.pod(&greedy);
        match pod.admit(1) {
            Ok(share) => pods.push(share),
            Err(full) => break full,
        }
    };
    assert_eq!(full.0.bound, Bound::Namespace);
    assert_eq!(alone.len() + pods.len(), 525, "a namespace has at most three quarters");
    // However many come, each finds something.
    let more: Vec<_> = (0..3)
        .map(|at| fill(&seats.pod(&namespace(&format!("ns{at}"))), 1))
        .flat_map(|(all, _)| all)
        .collect();
    assert!(seats.pod(&other).admit(1).is_ok());
    drop((alone, pods, more, pod));
    let held = seats.held.lock();
    assert!(held.lasting == 0 && held.passing == 0 && held.namespaces.is_empty());
}

#[test]
fn as_many_pods_as_the_node_offers_find_their_seats_however_they_are_spread() {
    for all in [16, 17, 32, 100, 4_000] {
        let seats = Seats::new(all);
        for namespaces in [1, 2, 7] {
            let pods: Vec<_> = (0..seats.pods_max())
                .map(|at| seats.pod(&namespace(&format!("ns{}", at % namespaces))).admit(1))
                .collect();
            assert!(pods.iter().all(Result::is_ok), "{all} seats, {namespaces} namespaces");
        }
    }
    assert_eq!(Seats::new(4_000).pods_max(), 2_625);
}

#[test]
fn requests_of_one_take_no_seat_that_others_need() {
    let seats = Seats::new(800);
    let (greedy, other) = (namespace("greedy"), namespace("other"));
    let greedy_pod = seats.pod(&greedy);
    let one = greedy_pod.admit(1).expect("room");
    let (flood, full) = requests(&one);
    assert_eq!(full.0.bound, Bound::Container);
    assert!(flood.len() > 150 && flood.len() < 201, "{}", flood.len());
    // More containers of the pod, more pods of the namespace.
    let second = greedy_pod.admit(1).expect("room");
    let (of_pod, full) = requests(&second);
    assert_eq!(full.0.bound, Bound::PodShare);
    let mut all: Vec<_> = flood.into_iter().chain(of_pod).collect();
    let shares: Vec<_> = (0..8).map(|_| seats.pod(&greedy).admit(1).expect("room")).collect();
    for share in &shares {
        all.extend(requests(share).0);
    }
    assert!(all.len() < 401, "a namespace has at most half: {}", all.len());
    // Others start, and serve.
    let elsewhere = seats.pod(&other).admit(1).expect("room");
    assert!(requests(&elsewhere).0.len() > 20);
    // Even many namespaces leave what is kept for starts.
    let floods: Vec<_> = (0..50)
        .map(|at| {
            let share = seats.pod(&namespace(&format!("ns{at}"))).admit(1).expect("room");
            let seats = requests(&share).0;
            assert!(!seats.is_empty(), "its own instance is there");
            seats
        })
        .collect();
    assert!(seats.pod(&other).admit(32).is_ok());
    drop((all, floods));
    assert_eq!(seats.live(), 0);
    assert_eq!(seats.held.lock().passing, 0);
}

#[test]
fn a_container_has_its_first_seat_until_it_is_over_and_its_instance_gone() {
    let seats = Seats::new(16);
    let share = seats.pod(&namespace("a")).admit(3).expect("room");
    let first = share.take().expect("its own");
    assert!(first.is_first());
    drop(first);
    assert_eq!((seats.held.lock().lasting, seats.live()), (3, 0));
    let first = share.take().expect("its own again");
    share.close();
    assert_eq!((seats.held.lock().lasting, seats.live()), (3, 3));
    drop(first);
    assert_eq!((seats.held.lock().lasting, seats.live()), (0, 0));
    drop(share);
    assert_eq!(seats.held.lock().lasting, 0);
}

#[test]
fn who_found_no_seat_is_told_when_one_gets_free() {
    let seats = Seats::new(16);
    let mut freed = seats.freed();
    let pod = seats.pod(&namespace("a"));
    let (mut held, full) = fill(&pod, 2);
    assert_eq!(full.0.bound, Bound::PodShare);
    assert!(!freed.has_changed().expect("open"));
    held.pop();
    assert!(freed.has_changed().expect("open"));
    freed.mark_unchanged();
    held.pop();
    assert!(!freed.has_changed().expect("open"), "nobody waits");
}

#[test]
fn a_start_that_requests_hold_up_is_told_of_the_end_of_one() {
    let seats = Seats::new(64);
    let mut freed = seats.freed();
    let mut flood = Vec::new();
    let serving: Vec<_> =
        (0..8).map(|at| seats.pod(&namespace(&format!("ns{at}"))).admit(1).expect("room")).collect();
    for share in &serving {
        flood.extend(requests(share).0);
    }
    let mut starts = Vec::new();
    let full = loop {
        match seats.pod(&namespace("starts")).admit(1) {
            Ok(share) => starts.push(share),
            Err(full) => break full,
        }
    };
    assert_eq!(full.0.bound, Bound::Node);
    assert!(starts.len() > 4, "some are kept for starts: {}", starts.len());
    let passing = flood.iter().rposition(|seat| !seat.is_first()).expect("there are many");
    drop(flood.remove(passing));
    assert!(freed.has_changed().expect("open"));
    // What got free is the start's, not the next request's.
    assert!(serving.iter().all(|share| share.take().is_err()));
    freed.mark_unchanged();
    starts.push(seats.pod(&namespace("starts")).admit(1).expect("it got free"));
}
