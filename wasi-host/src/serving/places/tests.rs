//! Who has a place, who makes room, and who is refused.

use futures::FutureExt;

use super::*;

fn places() -> Places {
    Places::new(Bounds {
        connections_max: 4,
        connections_per_source_max: 2,
        requests_max: 4,
        requests_per_source_max: 3,
    })
}

fn ip(last: u8) -> IpAddr {
    [10, 0, 0, last].into()
}

fn is_lost(place: &Place) -> bool {
    place.lost().now_or_never().is_some()
}

#[tokio::test]
async fn a_source_makes_room_for_itself_first() {
    let places = places();
    let other = places.enter(ip(9)).unwrap();
    let (first, second) = (places.enter(ip(1)).unwrap(), places.enter(ip(1)).unwrap());
    let third = places.enter(ip(1)).unwrap();
    assert!(is_lost(&first) && ![&second, &third, &other].into_iter().any(is_lost));
    assert_eq!(places.connections(), 3, "one that has to go is counted no more");
    // Those at work stay; the newcomer does not come in.
    let at_work = [second.begin().unwrap(), third.begin().unwrap()];
    assert!(places.enter(ip(1)).is_none());
    let for_many = places.enter_for_many(ip(1)).unwrap();
    assert_eq!(places.connections(), 4);
    // All places are taken: the oldest that does nothing goes, whose ever it is.
    let last = places.enter(ip(8)).unwrap();
    assert!(is_lost(&other) && !is_lost(&for_many));
    drop(at_work);
    drop((first, second, third, other, for_many, last));
    let state = places.shared.state.lock();
    assert!(state.connections == 0 && state.requests == 0);
    assert!(state.sources.is_empty() && state.idle.is_empty());
}

#[tokio::test]
async fn the_pods_of_a_namespace_together_leave_as_much_as_they_have() {
    let bounds = Bounds {
        connections_max: 40,
        connections_per_source_max: 20,
        requests_max: 40,
        requests_per_source_max: 20,
    };
    let places = Places::new(bounds);
    let enter = |last: u8, namespace: &str| places.enter_of(ip(last), Some(namespace.into()));
    let stays = places.enter(ip(1)).unwrap();
    // Ten pods that only connect drive out each other.
    let silent: Vec<Place> = (0..100).map(|at| enter(100 + at % 10, "greedy").unwrap()).collect();
    assert_eq!((places.connections(), is_lost(&stays)), (21, false));
    drop(silent);
    // And of what is under way they have half at most.
    let greedy: Vec<Place> = (0..10).map(|at| enter(100 + at, "greedy").unwrap()).collect();
    let mut under_way: Vec<InFlight> =
        greedy.iter().flat_map(|place| [place.begin().unwrap(), place.begin().unwrap()]).collect();
    for place in &greedy {
        assert_eq!(place.begin().err().map(|refused| refused.bound), Some(Bound::Caller));
    }
    let second = enter(2, "second").unwrap();
    let begun = std::iter::repeat_with(|| second.begin()).take_while(Result::is_ok);
    under_way.extend(begun.flatten());
    assert_eq!(under_way.len(), 30);
    // One of no other namespace, as outside or of the component's own, has the rest.
    let begun = std::iter::repeat_with(|| stays.begin()).take_while(Result::is_ok);
    under_way.extend(begun.flatten());
    assert_eq!(under_way.len(), 40);
    drop((under_way, stays, greedy, second));
    let state = places.shared.state.lock();
    assert!(state.sources.is_empty() && state.namespaces.is_empty() && state.idle.is_empty());
}

#[tokio::test]
async fn what_is_under_way_keeps_the_place_and_is_shared() {
    let places = places();
    let (one, two) = (places.enter(ip(1)).unwrap(), places.enter(ip(2)).unwrap());
    let kept: Vec<InFlight> = (0..3).map(|_| one.begin().unwrap()).collect();
    assert_eq!(one.begin().err().map(|refused| refused.bound), Some(Bound::Caller));
    let other = two.begin().unwrap();
    assert_eq!(two.begin().err().map(|refused| refused.bound), Some(Bound::Port));
    // As an upgraded connection does, whose server has handed it over.
    drop(one);
    assert_eq!(places.connections(), 2);
    drop((kept, other));
    assert_eq!(places.connections(), 1);
}

#[tokio::test]
async fn who_gives_up_again_and_again_has_to_go() {
    let places = places();
    let place = places.enter(ip(1)).unwrap();
    for _ in 0..10 * GIVEN_UP_MAX {
        let answered = place.begin().unwrap();
        drop(place.begin().unwrap());
        answered.answered();
    }
    assert!(!is_lost(&place));
    for _ in 0..=GIVEN_UP_MAX {
        drop(place.begin().unwrap());
    }
    assert!(is_lost(&place));
}

#[tokio::test(start_paused = true)]
async fn the_faults_of_a_source_hold_back_its_further_connections_for_a_while() {
    let places = places();
    let (faulty, other) = (places.enter(ip(1)).unwrap(), places.enter(ip(2)).unwrap());
    for _ in 0..FAULTS_BORNE {
        assert_eq!(faulty.held_back(), None);
        faulty.was_at_fault();
    }
    assert_eq!(faulty.held_back(), None);
    faulty.was_at_fault();
    assert_eq!((faulty.held_back(), other.held_back()), (Some(HELD_BACK), None));
    assert_eq!(places.enter_for_many(ip(1)).unwrap().held_back(), None);
    tokio::time::advance(FAULT_STAYS).await;
    assert_eq!(faulty.held_back(), None);
    // However many there were, they are forgotten after a time.
    for _ in 0..1000 {
        faulty.was_at_fault();
    }
    tokio::time::advance(FAULT_STAYS * (FAULTS_MAX - FAULTS_BORNE)).await;
    assert_eq!(faulty.held_back(), None);
    tokio::time::advance(FAULT_STAYS * FAULTS_BORNE).await;
    assert_eq!(faulty.held_back(), None);
    assert!(places.shared.state.lock().faults.is_empty());
    // Nor are they too many.
    for at in 0..3 * FAULTY_MAX as u32 {
        places.shared.state.lock().note_fault(std::net::Ipv4Addr::from_bits(at).into());
    }
    assert!(places.shared.state.lock().faults.len() <= FAULTY_MAX);
}

#[test]
fn a_network_of_ipv6_is_one_source() {
    let of = |text: &str| source_of(text.parse().unwrap());
    assert_eq!(of("2001:db8::1"), of("2001:db8::ffff:1"));
    assert_ne!(of("2001:db8::1"), of("2001:db8:0:1::1"));
    assert_eq!(of("::ffff:10.0.0.1"), of("10.0.0.1"));
    assert_ne!(of("10.0.0.1"), of("10.0.0.2"));
}
