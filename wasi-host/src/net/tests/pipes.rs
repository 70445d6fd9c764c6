//! Pipes: bounds, wake-ups, half-close, reset.

use super::super::{Conn, NetError, PIPE_CAPACITY, TRANSFER_BYTES_MAX};
use super::{address, context, counter, pending};
use bytes::Bytes;
use proptest::prelude::*;
use std::net::Shutdown;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

fn pair(capacity: usize) -> (Conn, Conn) {
    Conn::pair(address("10.128.0.5:40000"), address("10.128.0.6:80"), capacity)
}

#[test]
fn half_close_leaves_the_other_direction_open() {
    let (client, server) = pair(1024);
    assert_eq!(client.try_write(b"question"), Ok(8));
    client.shutdown(Shutdown::Write);
    assert_eq!(client.try_write(b"more"), Err(NetError::BrokenPipe));
    assert_eq!(server.try_read(100).as_deref(), Ok(&b"question"[..]));
    assert_eq!(server.try_read(100).as_deref(), Ok(&b""[..]));
    assert_eq!(server.try_write(b"answer"), Ok(6));
    assert_eq!(client.try_read(100).as_deref(), Ok(&b"answer"[..]));
    assert_eq!(client.try_read(100), Err(NetError::WouldBlock));
}

#[test]
fn what_is_left_of_a_chunk_keeps_little_more_than_itself() {
    struct Large(Vec<u8>, #[expect(dead_code, reason = "it tells of the drop")] std::sync::Arc<()>);
    impl AsRef<[u8]> for Large {
        fn as_ref(&self) -> &[u8] {
            &self.0
        }
    }
    let (client, server) = pair(PIPE_CAPACITY);
    let kept = std::sync::Arc::new(());
    let mut sent = Bytes::from_owner(Large((0..=255).cycle().take(100_000).collect(), kept.clone()));
    let whole = sent.clone();
    assert_eq!(client.try_write_bytes(&mut sent), Ok(100_000));
    let mut read = Vec::new();
    let mut take = |max| read.extend_from_slice(&server.try_read(max).unwrap());
    take(49_000);
    take(50_999);
    drop((sent, whole.slice(..0)));
    let expected = whole.to_vec();
    drop(whole);
    assert_eq!(std::sync::Arc::strong_count(&kept), 1, "the last byte has moved");
    take(1);
    assert_eq!(read, expected);
}

#[test]
fn first_write_after_a_clean_close_succeeds_and_the_second_breaks() {
    let (client, server) = pair(1024);
    drop(server);
    assert_eq!(client.try_read(10).as_deref(), Ok(&b""[..]));
    assert_eq!(client.try_write(b"a"), Ok(1));
    assert_eq!(client.try_write(b"b"), Err(NetError::BrokenPipe));
    assert_eq!(client.write_permit(), Err(NetError::BrokenPipe));
}

#[test]
fn close_with_unread_bytes_resets_the_peer() {
    let (client, server) = pair(1024);
    server.try_write(b"greeting").unwrap();
    client.try_write(b"never read").unwrap();
    drop(server);
    // What had arrived is still read, then the reset once, then the end.
    assert_eq!(client.try_read(100).as_deref(), Ok(&b"greeting"[..]));
    assert_eq!(client.try_read(100), Err(NetError::ConnectionReset));
    assert_eq!(client.try_read(100).as_deref(), Ok(&b""[..]));
    assert_eq!(client.try_write(b"x"), Err(NetError::ConnectionReset));
    assert_eq!(client.try_write(b"x"), Err(NetError::BrokenPipe));
}

#[test]
fn writes_to_a_peer_that_shut_reading_down_are_swallowed() {
    let (client, server) = pair(16);
    server.shutdown(Shutdown::Read);
    for _ in 0..100 {
        assert_eq!(client.try_write(b"0123456789"), Ok(10));
    }
    assert_eq!(server.try_read(100).as_deref(), Ok(&b""[..]));
}

#[test]
fn full_pipe_wakes_its_writer_at_half_empty_and_once() {
    let (client, server) = pair(100);
    assert_eq!(client.try_write(&[7; 150]), Ok(100));
    assert_eq!(client.try_write(&[7]), Err(NetError::WouldBlock));
    let (waker, woken) = counter();
    for _ in 0..5 {
        assert!(pending(client.poll_writable(&mut context(&waker))));
    }
    assert_eq!(server.try_read(49).map(|bytes| bytes.len()), Ok(49));
    assert_eq!(woken.times(), 0);
    assert_eq!(client.try_write(&[7]), Err(NetError::WouldBlock));
    assert_eq!(server.try_read(1).map(|bytes| bytes.len()), Ok(1));
    assert_eq!(woken.times(), 1);
    assert_eq!(client.try_write(&[7; 150]), Ok(50));
}

#[test]
fn readers_wake_on_bytes_end_and_reset() {
    for act in [
        (|conn: &Conn| assert_eq!(conn.try_write(b"x"), Ok(1))) as fn(&Conn),
        |conn| conn.shutdown(Shutdown::Write),
        |conn| conn.reset(),
    ] {
        let (client, server) = pair(100);
        let (waker, woken) = counter();
        assert!(pending(server.poll_readable(&mut context(&waker))));
        act(&client);
        assert_eq!(woken.times(), 1);
        assert!(!pending(server.poll_readable(&mut context(&waker))));
    }
}

#[test]
fn several_tasks_may_wait_and_wakers_are_bounded() {
    let (client, server) = pair(100);
    let waiting: Vec<_> = (0..100).map(|_| counter()).collect();
    for (waker, _) in &waiting {
        assert!(pending(server.poll_readable(&mut context(waker))));
    }
    client.try_write(b"x").unwrap();
    assert!(waiting.iter().all(|(_, woken)| woken.times() == 1), "each is woken exactly once, early or late");
}

#[test]
fn permits_are_redeemed_whole() {
    let (client, server) = pair(PIPE_CAPACITY);
    let mut sent = 0;
    loop {
        let permit = client.write_permit().unwrap();
        if permit == 0 {
            break;
        }
        assert!(permit <= TRANSFER_BYTES_MAX);
        client.write_permitted(Bytes::from(vec![1; permit])).unwrap();
        sent += permit;
    }
    assert_eq!(sent, PIPE_CAPACITY);
    let mut received = 0;
    while let Ok(bytes) = server.try_read(usize::MAX) {
        received += bytes.len();
    }
    assert_eq!(received, sent);
}

#[tokio::test]
async fn moves_a_lot_between_tasks() {
    const TOTAL: usize = 64 * 1024 * 1024;
    let (mut client, mut server) = pair(PIPE_CAPACITY);
    let writer = tokio::spawn(async move {
        let block = vec![42; TRANSFER_BYTES_MAX];
        let mut left = TOTAL;
        while left > 0 {
            let length = left.min(block.len());
            client.write_all(&block[..length]).await.unwrap();
            left -= length;
        }
        client.shutdown(Shutdown::Write);
        client
    });
    let mut buffer = vec![0; TRANSFER_BYTES_MAX];
    let mut received = 0;
    loop {
        match server.read(&mut buffer).await.unwrap() {
            0 => break,
            length => received += length,
        }
    }
    assert_eq!(received, TOTAL);
    writer.await.unwrap();
}

proptest! {
    /// Whatever the sizes of writes and reads, the bytes come out as they went in.
    #[test]
    fn bytes_keep_their_order(
        writes in proptest::collection::vec(0usize..5000, 1..60),
        reads in proptest::collection::vec(1usize..7000, 1..20),
        capacity in 1usize..20_000,
    ) {
        let (client, server) = pair(capacity);
        let (mut written, mut read) = (0usize, 0usize);
        let byte = |position: usize| (position % 251) as u8;
        let mut reads = reads.iter().cycle();
        let mut drain = |read: &mut usize| {
            let size = *reads.next().unwrap();
            let Ok(bytes) = server.try_read(size) else { return false };
            assert!(bytes.len() <= size);
            for value in &bytes {
                assert_eq!(*value, byte(*read));
                *read += 1;
            }
            true
        };
        for (index, size) in writes.into_iter().enumerate() {
            let data: Vec<u8> = (written..written + size).map(byte).collect();
            let mut data = Bytes::from(data);
            while !data.is_empty() {
                let before = data.len();
                let result = if index % 2 == 0 {
                    client.try_write_bytes(&mut data).map(drop)
                } else {
                    client.try_write(&data).map(|length| drop(data.split_to(length)))
                };
                written += before - data.len();
                if result == Err(NetError::WouldBlock) {
                    drain(&mut read);
                }
            }
        }
        while drain(&mut read) {}
        prop_assert_eq!(read, written);
    }
}
