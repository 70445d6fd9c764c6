//! How long something counts as under way, and how many places there are for it.

use super::*;

#[tokio::test]
async fn a_request_is_under_way_until_its_response_has_been_read_and_no_longer() {
    let server = Server::new();
    let place = server.places.enter([10, 0, 0, 1].into()).expect("free");
    let ends = |body: HttpBody| {
        let mut served = ServedBody::new(body, Some(place.begin().expect("free")), None);
        async move {
            while let Some(Ok(_)) = served.frame().await {}
            served
        }
    };
    // Whoever has read a body need not have dropped it.
    let whole = ends(full_body("all of it")).await;
    assert!(!place.is_busy());
    let failed = futures::stream::iter([Err(std::io::Error::from(std::io::ErrorKind::TimedOut).into())]);
    let broken = ends(StreamBody::new(failed).boxed_unsync()).await;
    assert!(!place.is_busy());
    let unread = ServedBody::new(full_body("all of it"), Some(place.begin().expect("free")), None);
    assert!(place.is_busy());
    drop((whole, broken, unread));
    assert!(!place.is_busy());
}

#[tokio::test(start_paused = true)]
async fn what_a_connection_was_upgraded_to_keeps_its_place_as_long_as_it_is_kept() {
    let places = Server::new().places;
    let place = places.enter([10, 0, 0, 1].into()).expect("free");
    let address = |last: u8| SocketAddr::new([10, 0, 0, last].into(), 80);
    let (mut client, inner) = Conn::pair(address(1), address(2), PIPE_CAPACITY);
    let (kept, mut keeper) = tokio::sync::mpsc::unbounded_channel::<Option<InFlight>>();
    let served = tokio::spawn(serve(inner, place, std::future::pending(), move |mut request| {
        let _ = kept.send(request.extensions_mut().remove());
        let upgraded =
            Response::builder().status(StatusCode::SWITCHING_PROTOCOLS).header(UPGRADE, "websocket");
        std::future::ready(upgraded.body(empty_body()).expect("a response"))
    }));
    client
        .write_all(b"GET / HTTP/1.1\r\nhost: a\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n")
        .await
        .expect("room");
    let in_flight = keeper.recv().await.expect("it is asked").expect("who upgrades has it");
    served.await.expect("no panic").expect("handed over");
    assert_eq!(places.connections(), 1);
    drop(in_flight);
    assert_eq!(places.connections(), 0);
}

#[test]
fn a_listener_with_few_descriptors_has_as_few_places() {
    let few = GATEWAY.within(10);
    assert_eq!((few.connections_max, few.connections_per_source_max), (10, 5));
    let one = GATEWAY.within(0);
    assert_eq!((one.connections_max, one.connections_per_source_max), (1, 1));
    assert_eq!(GATEWAY.within(usize::MAX), GATEWAY);
}
