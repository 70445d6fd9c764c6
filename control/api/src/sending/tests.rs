//! What answers under way keep, and for how long.

use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

use futures::{StreamExt, stream};
use http_body_util::BodyExt;

use super::*;
use crate::lane::Lane;

const MIB: usize = 1024 * 1024;

/// Frames of a MiB that are counted while they are in memory.
fn endless(alive: &Arc<AtomicUsize>) -> Body {
    struct Counted(Vec<u8>, Arc<AtomicUsize>);
    impl AsRef<[u8]> for Counted {
        fn as_ref(&self) -> &[u8] {
            &self.0
        }
    }
    impl Drop for Counted {
        fn drop(&mut self) {
            self.1.fetch_sub(1, SeqCst);
        }
    }
    let alive = alive.clone();
    Body::from_stream(stream::repeat_with(move || {
        alive.fetch_add(1, SeqCst);
        Ok::<_, std::convert::Infallible>(Bytes::from_owner(Counted(vec![0; MIB], alive.clone())))
    }))
}

async fn turn(lane: &Lane) -> Turn {
    tokio::time::timeout(Duration::ZERO, lane.enter("a")).await.expect("there is a turn").unwrap()
}

async fn is_taken(lane: &Lane) -> bool {
    tokio::time::timeout(Duration::ZERO, lane.wait("a")).await.is_err()
}

async fn next(body: &mut Body) -> Bytes {
    body.frame().await.unwrap().unwrap().into_data().unwrap()
}

#[tokio::test(start_paused = true)]
async fn a_turn_is_over_when_the_last_byte_is_written() {
    let lane = Lane::new(1, 1, 9);
    let answer = until_sent(Response::new(Body::from(vec![1; 3 * FRAME_BYTES])), turn(&lane).await);
    assert_eq!(answer.body().size_hint().exact(), Some(3 * FRAME_BYTES as u64));
    let mut body = answer.into_body();
    let mut frames = Vec::new();
    while !body.is_end_stream() {
        frames.push(next(&mut body).await);
    }
    assert_eq!(frames.iter().map(Bytes::len).collect::<Vec<_>>(), [FRAME_BYTES; 3]);
    drop(body);
    assert!(is_taken(&lane).await, "all was taken from the body, and nothing was written");
    let last = frames.pop().unwrap().slice(1..);
    drop(frames);
    assert!(is_taken(&lane).await);
    drop(last);
    assert!(!is_taken(&lane).await);
}

#[tokio::test(start_paused = true)]
async fn small_answers_are_one_frame_and_tiny_ones_keep_no_turn() {
    let lane = Lane::new(1, 1, 9);
    let tiny = until_sent(Response::new(Body::from("{}")), turn(&lane).await);
    assert!(!is_taken(&lane).await);
    drop(tiny);
    let small = until_sent(Response::new(Body::from(vec![1; 60_000])), turn(&lane).await);
    assert!(is_taken(&lane).await);
    let mut body = small.into_body();
    assert_eq!(next(&mut body).await.len(), 60_000);
    assert!(body.is_end_stream());
    drop(body);
    assert!(!is_taken(&lane).await);
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_nobody_takes_is_given_up() {
    let (lane, alive) = (Lane::new(1, 1, 9), Arc::new(AtomicUsize::new(0)));
    for frames in [0, 1, 3] {
        let answer = until_sent(Response::new(endless(&alive)), turn(&lane).await);
        let mut body = answer.into_body();
        for _ in 0..frames {
            assert_eq!(next(&mut body).await.len(), FRAME_BYTES);
        }
        tokio::time::sleep(TAKING_NOTHING_MAX - Duration::from_secs(1)).await;
        assert!(is_taken(&lane).await, "it may still be read");
        tokio::time::sleep(Duration::from_secs(2)).await;
        assert!(!is_taken(&lane).await, "after {frames} frames");
        assert_eq!(alive.load(SeqCst), 0);
        assert!(body.frame().await.unwrap().is_err(), "who reads after all sees that it is not whole");
    }
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_is_taken_drop_by_drop_is_given_up_later() {
    let (lane, alive) = (Lane::new(1, 1, 9), Arc::new(AtomicUsize::new(0)));
    let began = Instant::now();
    let mut body = until_sent(Response::new(endless(&alive)), turn(&lane).await).into_body();
    while let Some(Ok(_)) = body.frame().await {
        tokio::time::sleep(TAKING_NOTHING_MAX / 2).await;
    }
    assert!(began.elapsed() >= SENDING_MAX && began.elapsed() < SENDING_MAX + TAKING_NOTHING_MAX);
    assert!(!is_taken(&lane).await && alive.load(SeqCst) == 0);
}

#[tokio::test(start_paused = true)]
async fn a_watch_ends_where_it_is_not_read_and_not_where_nothing_happens() {
    let (events, mut received) = tokio::sync::mpsc::channel::<Bytes>(8);
    let received = stream::poll_fn(move |context| received.poll_recv(context));
    let mut body = while_taken(Body::from_stream(received.map(Ok::<_, std::convert::Infallible>)));
    for _ in 0..3 {
        let quiet = tokio::time::timeout(10 * TAKING_NOTHING_MAX, body.frame()).await;
        assert!(quiet.is_err(), "nothing happened: it goes on");
        events.send(Bytes::from_static(b"event")).await.unwrap();
        assert_eq!(next(&mut body).await, "event");
    }
    tokio::time::sleep(TAKING_NOTHING_MAX + Duration::from_secs(1)).await;
    assert!(events.is_closed(), "what the watch kept is given up");
    assert!(body.frame().await.unwrap().is_err());
}
