//! A component that is small to send, and of which each instance takes much of the host.

use std::time::Duration;

use anyhow::Result;
use serde_json::json;
use tokio::time::sleep;

use super::{
    LONG, Stage,
    compile::{leb, of_sections},
};

/// Elements of a segment, and of the table that is filled from it.
const ELEMENTS: usize = 1_000_000;
const TABLE: usize = 100_000;

const END: u8 = 0x0b;
const CALL: u8 = 0x10;
const DROP: u8 = 0x1a;
const I32_CONST: u8 = 0x41;
const TABLE_INIT: [u8; 2] = [0xfc, 0x0c];
const PASSIVE: u8 = 1;
const FUNCREF: u8 = 0x70;

/// Where the module's memory has the subscription, the event and the number of events of its `poll_oneoff`.
const SUBSCRIPTION: usize = 0;
const EVENT: usize = 64;
const EVENTS: usize = 128;

/// Until it is compiled.
const PATIENCE: Duration = Duration::from_secs(60);

/// Each pod keeps its instance for as long as it runs.
pub async fn elements(stage: Stage) -> Result<String> {
    let rest = stage.client.rest().await?;
    let image = "hostile/elements:1";
    stage.push(image, &module()).await?;
    let container = json!({"name": "c", "image": image});
    stage.start(&rest, "first", container.clone()).await?;
    stage.until(&rest, "first", |pod| pod["status"]["phase"] != "Pending", PATIENCE).await?;
    stage.replicas(&rest, "elements", 199, container).await?;
    sleep(LONG).await;
    Ok(stage.summary(&rest).await? + &stage.refusal(&rest).await?)
}

/// Fills its table from the segment and waits.
fn module() -> Vec<u8> {
    // The second function, again and again.
    let elements = vec![1; ELEMENTS];
    let mut code = vec![0];
    for operand in [0, 0, TABLE] {
        code.extend(constant(operand));
    }
    code.extend(TABLE_INIT);
    code.extend([0, 0]);
    for operand in [SUBSCRIPTION, EVENT, 1, EVENTS] {
        code.extend(constant(operand));
    }
    code.extend([CALL, 0, DROP, END]);
    of_sections(&[
        (1, b"\x02\x60\0\0\x60\x04\x7f\x7f\x7f\x7f\x01\x7f"),
        (2, b"\x01\x16wasi_snapshot_preview1\x0bpoll_oneoff\0\x01"),
        (3, b"\x01\0"),
        (4, &[vec![1, FUNCREF, 0], leb(TABLE)].concat()),
        (5, b"\x01\0\x01"),
        (7, b"\x02\x06_start\0\x01\x06memory\x02\0"),
        (9, &[vec![1, PASSIVE, 0], leb(elements.len()), elements].concat()),
        (10, &[leb(1), leb(code.len()), code].concat()),
        (11, &[vec![1, 0], constant(SUBSCRIPTION), vec![END], subscription()].concat()),
    ])
}

/// To the monotonic clock, for longer than any act; with its length.
fn subscription() -> Vec<u8> {
    let mut bytes = vec![0; 48];
    bytes[16] = 1;
    bytes[24..32].copy_from_slice(&(1_u64 << 60).to_le_bytes());
    [leb(bytes.len()), bytes].concat()
}

/// An instruction that pushes it. A signed number, whose last byte says by its second bit whether it is below zero.
fn constant(number: usize) -> Vec<u8> {
    let mut bytes = leb(number);
    if let Some(last) = bytes.last_mut()
        && *last & 0x40 != 0
    {
        *last |= 0x80;
        bytes.push(0);
    }
    bytes.insert(0, I32_CONST);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_whose_last_byte_would_say_that_they_are_below_zero_have_one_more() {
        assert_eq!(constant(63), [I32_CONST, 63]);
        assert_eq!(constant(64), [I32_CONST, 0xc0, 0]);
        assert_eq!(constant(100_000), [I32_CONST, 0xa0, 0x8d, 6]);
    }
}
