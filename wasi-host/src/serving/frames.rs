//! Floods of HTTP/2 frames that bring nothing and cause work: PING, SETTINGS, PRIORITY, WINDOW_UPDATE, RST_STREAM, unknown.
//!
//! h2 answers each of them and counts none. Here a connection has a credit: such a frame costs one, a large one more, and
//! requests, data in both directions and time bring it back.

use tokio::time::Instant;

/// Such frames that a connection may send at once, and that it gets back with time.
const CREDIT_MAX: u32 = 1024;
const CREDIT_PER_SECOND: u32 = 100;

/// Bytes of such a frame that are looked at for one; of those that clients need only SETTINGS has more than eight.
const BYTES_FOR_CREDIT: usize = 64;

/// Bytes of data, from the client or sent to it, that bring one: enough for the WINDOW_UPDATEs and PINGs that data causes,
/// and more than the answers to any such frames are. In however many frames: empty ones bring nothing.
const BYTES_PER_CREDIT: usize = 1024;

/// What a client begins an HTTP/2 connection with (RFC 9113, 3.4).
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Bytes of a frame's head: length, type, flags, stream (RFC 9113, 4.1).
const FRAME_HEAD_BYTES: usize = 9;

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const CONTINUATION: u8 = 9;
const END_HEADERS: u8 = 4;

/// Watches what a client sends. Of HTTP/1.1 it knows nothing.
pub(super) struct FrameMeter {
    state: State,
    credit: u32,
    refilled: Instant,
    /// Bytes that have brought nothing yet.
    bytes: usize,
    /// A head has begun that goes on in another frame.
    head_goes_on: bool,
}

enum State {
    /// So many bytes of the preface have been seen.
    Preface(usize),
    Head {
        bytes: [u8; FRAME_HEAD_BYTES],
        seen: usize,
    },
    /// So many bytes are left of a frame.
    Payload(usize),
    Other,
}

impl Default for FrameMeter {
    fn default() -> Self {
        Self {
            state: State::Preface(0),
            credit: CREDIT_MAX,
            refilled: Instant::now(),
            bytes: 0,
            head_goes_on: false,
        }
    }
}

const NO_HEAD: State = State::Head { bytes: [0; FRAME_HEAD_BYTES], seen: 0 };

impl FrameMeter {
    /// Takes note of bytes from the client; false where they are a flood.
    pub(super) fn received(&mut self, mut bytes: &[u8]) -> bool {
        while !bytes.is_empty() {
            match &mut self.state {
                State::Other => return true,
                State::Preface(seen) => {
                    let length = bytes.len().min(PREFACE.len() - *seen);
                    if bytes[..length] != PREFACE[*seen..*seen + length] {
                        self.state = State::Other;
                        return true;
                    }
                    *seen += length;
                    bytes = &bytes[length..];
                    if *seen == PREFACE.len() {
                        self.state = NO_HEAD;
                    }
                }
                State::Payload(left) => {
                    let length = bytes.len().min(*left);
                    *left -= length;
                    bytes = &bytes[length..];
                    if *left == 0 {
                        self.state = NO_HEAD;
                    }
                }
                State::Head { bytes: head, seen } => {
                    let length = bytes.len().min(FRAME_HEAD_BYTES - *seen);
                    head[*seen..*seen + length].copy_from_slice(&bytes[..length]);
                    *seen += length;
                    bytes = &bytes[length..];
                    if *seen == FRAME_HEAD_BYTES {
                        let payload = u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
                        let (kind, flags) = (head[3], head[4]);
                        if matches!(kind, HEADERS | CONTINUATION) {
                            self.head_goes_on = flags & END_HEADERS == 0;
                        }
                        self.state = if payload == 0 { NO_HEAD } else { State::Payload(payload) };
                        if !self.charge(kind, payload) {
                            return false;
                        }
                    }
                }
            }
        }
        true
    }

    /// Whether the client speaks HTTP/2, as far as it has spoken.
    pub(super) fn is_http2(&self) -> bool {
        !matches!(self.state, State::Other)
    }

    /// Whether a head of HTTP/2 is under way that is not whole with the frame that it began in.
    pub(super) fn head_goes_on(&self) -> bool {
        self.head_goes_on
    }

    /// Takes note of bytes to the client.
    pub(super) fn sent(&mut self, bytes: usize) {
        if matches!(self.state, State::Other) {
            return;
        }
        self.moved(bytes);
    }

    fn moved(&mut self, bytes: usize) {
        self.bytes += bytes;
        self.earn(u32::try_from(self.bytes / BYTES_PER_CREDIT).unwrap_or(CREDIT_MAX));
        self.bytes %= BYTES_PER_CREDIT;
    }

    /// Takes note of a frame with so many bytes.
    fn charge(&mut self, kind: u8, payload: usize) -> bool {
        match kind {
            // Bounded elsewhere.
            CONTINUATION => true,
            DATA => {
                self.moved(payload);
                true
            }
            HEADERS => {
                self.earn(1);
                true
            }
            _ => {
                let cost = 1 + u32::try_from(payload / BYTES_FOR_CREDIT).unwrap_or(CREDIT_MAX);
                if self.credit < cost {
                    self.refill();
                }
                let left = self.credit.checked_sub(cost);
                self.credit = left.unwrap_or(0);
                left.is_some()
            }
        }
    }

    fn earn(&mut self, credit: u32) {
        self.credit = self.credit.saturating_add(credit).min(CREDIT_MAX);
    }

    /// What time has brought since the credit was last at its end.
    fn refill(&mut self) {
        let now = Instant::now();
        let passed = now - std::mem::replace(&mut self.refilled, now);
        let earned = passed.as_secs_f64() * f64::from(CREDIT_PER_SECOND);
        self.earn(earned.min(f64::from(CREDIT_MAX)) as u32);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const PING: u8 = 6;
    const SETTINGS: u8 = 4;

    fn frame(kind: u8, payload: usize) -> Vec<u8> {
        let mut frame = (payload as u32).to_be_bytes()[1..].to_vec();
        frame.extend([kind, 0, 0, 0, 0, 0]);
        frame.resize(FRAME_HEAD_BYTES + payload, 0);
        frame
    }

    fn begun() -> FrameMeter {
        let mut meter = FrameMeter::default();
        assert!(meter.received(&PREFACE[..5]) && meter.received(&PREFACE[5..]));
        meter
    }

    /// How many pings are let through, cut into pieces of this size.
    fn pings(meter: &mut FrameMeter, piece: usize) -> usize {
        let flood = frame(PING, 8).repeat(3 * CREDIT_MAX as usize);
        let through = flood.chunks(piece).take_while(|piece| meter.received(piece)).count();
        through * piece / (FRAME_HEAD_BYTES + 8)
    }

    #[tokio::test(start_paused = true)]
    async fn floods_are_told_from_work() {
        for piece in [1, 7, FRAME_HEAD_BYTES + 8] {
            assert_eq!(pings(&mut begun(), piece), CREDIT_MAX as usize);
        }
        // Its own answers bring a flood nothing to speak of; real data does.
        let mut meter = begun();
        for _ in 0..100_000 {
            assert!(meter.received(&frame(PING, 8)));
            meter.sent(BYTES_PER_CREDIT);
            assert!(meter.received(&frame(DATA, 100)));
        }
        // Each of data sent and data received does by itself, and neither is saved up beyond the bound.
        for receives in [false, true] {
            let mut meter = begun();
            for _ in 0..2 * CREDIT_MAX {
                assert!(meter.received(&frame(PING, 8)));
                if receives {
                    assert!(meter.received(&frame(DATA, BYTES_PER_CREDIT)));
                } else {
                    meter.sent(BYTES_PER_CREDIT);
                }
            }
            assert!(meter.received(&frame(DATA, BYTES_PER_CREDIT).repeat(4 * CREDIT_MAX as usize)));
            assert_eq!(pings(&mut meter, FRAME_HEAD_BYTES + 8), CREDIT_MAX as usize);
        }
        // Large ones cost as much as many.
        for (payload, through) in [(0, CREDIT_MAX), (60, CREDIT_MAX), (16 << 10, CREDIT_MAX / 257)] {
            let (mut meter, one) = (begun(), frame(SETTINGS, payload));
            let passed = (0..2 * CREDIT_MAX).take_while(|_| meter.received(&one)).count();
            assert_eq!(passed, through as usize, "{payload}");
        }
        // In many frames, or in few, empty ones are no data.
        let mut meter = begun();
        for _ in 0..CREDIT_MAX {
            assert!(meter.received(&frame(PING, 8)) && meter.received(&frame(DATA, 0)));
        }
        let (mut single, mut through) = (frame(DATA, 1), 0);
        single.extend(frame(PING, 8));
        while through < CREDIT_MAX && meter.received(&single) {
            through += 1;
        }
        assert!(through <= 1, "{through}");
        let mut meter = begun();
        for _ in 0..100 {
            assert!(meter.received(&frame(DATA, 100 * BYTES_PER_CREDIT)));
            assert!(meter.received(&frame(PING, 8).repeat(100)));
        }
        // Time does too, slowly.
        let mut meter = begun();
        let all_of =
            |meter: &mut FrameMeter, count: u32| meter.received(&frame(PING, 8).repeat(count as usize));
        assert!(all_of(&mut meter, CREDIT_MAX));
        for _ in 0..10 {
            tokio::time::advance(Duration::from_secs(1)).await;
            assert!(all_of(&mut meter, CREDIT_PER_SECOND));
        }
        assert!(!all_of(&mut meter, 1));
        let mut plain = FrameMeter::default();
        assert!(plain.received(b"PRI * HTTP/1.1\r\n") && plain.received(&frame(PING, 8).repeat(9999)));
    }
}
