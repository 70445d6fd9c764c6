//! Floods of HTTP/2 frames, to both doors.

use std::{sync::Arc, time::Instant};

use anyhow::Result;
use tokio::{io::AsyncWriteExt, task::JoinSet, time::timeout};

use super::{
    CONNECTIONS, FLOOD, Stage,
    web::{Web, connect},
};

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const CONTINUATION: u8 = 9;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;
/// GET, /, http in the static table of HPACK, then the authority as it is.
const REQUEST: &[u8] = b"\x82\x84\x86\x41\x0dweb.localhost";
/// What is written at once.
const PIECE_BYTES: usize = 16 * 1024;
/// Frames of a connection; no one is borne so long.
const FRAMES: u32 = 50_000;

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = (payload.len() as u32).to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

pub async fn resets(stage: Stage) -> Result<String> {
    flood(&stage, |number| {
        let stream = 2 * number + 1;
        let mut both = frame(HEADERS, END_HEADERS | END_STREAM, stream, REQUEST);
        both.extend(frame(RST_STREAM, 0, stream, &[0, 0, 0, 8]));
        both
    })
    .await
}

pub async fn continuations(stage: Stage) -> Result<String> {
    flood(&stage, |number| match number {
        0 => frame(HEADERS, END_STREAM, 1, REQUEST),
        _ => frame(CONTINUATION, 0, 1, b"\x00\x01x\x01x"),
    })
    .await
}

pub async fn pings(stage: Stage) -> Result<String> {
    flood(&stage, |_| frame(PING, 0, 0, &[0; 8])).await
}

pub async fn settings(stage: Stage) -> Result<String> {
    flood(&stage, |_| frame(SETTINGS, 0, 0, &[])).await
}

/// Frames as fast as they are taken, on connections that are made anew where they are ended; nothing is read.
async fn flood(stage: &Stage, of: fn(u32) -> Vec<u8>) -> Result<String> {
    let web = Web::start(stage).await?;
    // Made once: what the flood costs shall be the other side's.
    let mut bytes = PREFACE.to_vec();
    bytes.extend(frame(SETTINGS, 0, 0, &[]));
    bytes.extend((0..FRAMES).flat_map(of));
    let (bytes, begun) = (Arc::<[u8]>::from(bytes), Instant::now());
    let mut clients = JoinSet::new();
    for number in 0..CONNECTIONS {
        let address = if number % 2 == 0 { web.gateway.clone() } else { web.port.clone() };
        let bytes = bytes.clone();
        clients.spawn(async move {
            let (mut ended, mut sent) = (0, 0);
            while begun.elapsed() < FLOOD {
                let left = FLOOD.saturating_sub(begun.elapsed());
                ended += usize::from(timeout(left, send(&address, &bytes, &mut sent)).await.is_ok());
            }
            (ended, sent)
        });
    }
    let (mut ended, mut sent) = (0, 0);
    while let Some(each) = clients.join_next().await {
        let each = each?;
        (ended, sent) = (ended + each.0, sent + each.1);
    }
    Ok(format!("{} MB sent, {ended} connections ended", sent / 1_000_000))
}

/// Until the other side ends it.
async fn send(address: &str, bytes: &[u8], sent: &mut usize) -> Result<()> {
    let mut stream = connect(address).await?;
    for piece in bytes.chunks(PIECE_BYTES) {
        stream.write_all(piece).await?;
        *sent += piece.len();
    }
    Ok(())
}
