//! Questions and answers of the domain name system (RFC 1035, with the size of RFC 6891), as far as a stub needs them.

use super::Family;
use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

const HEADER_BYTES: usize = 12;
const LABEL_BYTES_MAX: usize = 63;
const NAME_BYTES_MAX: usize = 253;

const TYPE_A: u16 = 1;
const TYPE_CNAME: u16 = 5;
const TYPE_SOA: u16 = 6;
const TYPE_AAAA: u16 = 28;
const TYPE_OPT: u16 = 41;
const CLASS_INTERNET: u16 = 1;

const FLAG_ANSWER: u16 = 0x8000;
const MASK_OPCODE: u16 = 0x7800;
const FLAG_TRUNCATED: u16 = 0x0200;
const FLAG_RECURSION: u16 = 0x0100;
const MASK_OUTCOME: u16 = 0x000f;
const NO_ERROR: u16 = 0;
const NO_SUCH_NAME: u16 = 3;

/// Names that a name may stand for, one after the other.
const ALIASES_MAX: usize = 16;

/// Addresses that are taken of one answer.
const ADDRESSES_MAX: usize = 32;

/// How long an answer without addresses holds that does not say it.
const NOTHING_LIFETIME: Duration = Duration::from_secs(5);

/// One question, with a random number.
#[derive(Debug)]
pub(super) struct Question {
    id: u16,
    name: String,
    kind: u16,
}

/// What a server says.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Reply {
    /// At least one, and how long they hold.
    Addresses(Vec<IpAddr>, Duration),
    /// The name has none, and how long that holds.
    Nothing(Duration),
    /// The whole did not fit; it is to be had by TCP.
    Truncated,
    /// The server cannot tell.
    Failed,
}

/// No answer to the question.
#[derive(Debug)]
pub(super) struct Unfit;

impl Question {
    /// None for what is no name of the domain name system.
    pub(super) fn new(name: &str, family: Family) -> Option<Self> {
        let is_label = |label: &str| (1..=LABEL_BYTES_MAX).contains(&label.len()) && label.is_ascii();
        if name.len() > NAME_BYTES_MAX || !name.split('.').all(is_label) {
            return None;
        }
        let kind = if family == Family::V4 { TYPE_A } else { TYPE_AAAA };
        Some(Self { id: rand::random(), name: name.to_ascii_lowercase(), kind })
    }

    pub(super) fn encode(&self, answer_bytes_max: u16) -> Vec<u8> {
        let mut out = Vec::with_capacity(HEADER_BYTES + self.name.len() + 17);
        // One question, one additional record.
        for word in [self.id, FLAG_RECURSION, 1, 0, 0, 1] {
            out.extend(word.to_be_bytes());
        }
        for label in self.name.split('.') {
            out.push(label.len() as u8);
            out.extend(label.as_bytes());
        }
        out.push(0);
        for word in [self.kind, CLASS_INTERNET] {
            out.extend(word.to_be_bytes());
        }
        // The root's name, OPT, the size, no flags and no data.
        out.push(0);
        for word in [TYPE_OPT, answer_bytes_max, 0, 0, 0] {
            out.extend(word.to_be_bytes());
        }
        out
    }
}

impl Reply {
    /// Reads an answer, which must be one to the question: its number, and its question word by word.
    pub(super) fn decode(question: &Question, bytes: &[u8]) -> Result<Reply, Unfit> {
        let mut reader = Reader { bytes, at: 0 };
        let mut header = [0; 6];
        for word in &mut header {
            *word = reader.u16()?;
        }
        let [id, flags, questions, answers, authorities, _] = header;
        let is_answer = flags & FLAG_ANSWER != 0 && flags & MASK_OPCODE == 0 && questions == 1;
        if !is_answer || id != question.id {
            return Err(Unfit);
        }
        if (reader.name()?, reader.u16()?, reader.u16()?)
            != (question.name.clone(), question.kind, CLASS_INTERNET)
        {
            return Err(Unfit);
        }
        if flags & FLAG_TRUNCATED != 0 {
            return Ok(Reply::Truncated);
        }
        if ![NO_ERROR, NO_SUCH_NAME].contains(&(flags & MASK_OUTCOME)) {
            return Ok(Reply::Failed);
        }
        let records = Records::read(&mut reader, question.kind, answers, authorities)?;
        Ok(records.reply(&question.name))
    }
}

/// The records of an answer that matter.
#[derive(Default)]
struct Records {
    addresses: HashMap<String, Vec<(IpAddr, Duration)>>,
    aliases: HashMap<String, (String, Duration)>,
    nothing_lifetime: Option<Duration>,
}

impl Records {
    fn read(reader: &mut Reader<'_>, kind: u16, answers: u16, authorities: u16) -> Result<Self, Unfit> {
        let mut records = Self::default();
        for _ in 0..u32::from(answers) + u32::from(authorities) {
            let owner = reader.name()?;
            let (record, class) = (reader.u16()?, reader.u16()?);
            let lifetime = Duration::from_secs(reader.u32()?.into());
            let length = usize::from(reader.u16()?);
            let end = reader.at + length;
            if end > reader.bytes.len() {
                return Err(Unfit);
            }
            match (class, record, length) {
                (CLASS_INTERNET, TYPE_A, 4) if kind == TYPE_A => {
                    let address = Ipv4Addr::from_bits(reader.u32()?).into();
                    records.addresses.entry(owner).or_default().push((address, lifetime));
                }
                (CLASS_INTERNET, TYPE_AAAA, 16) if kind == TYPE_AAAA => {
                    let address = Ipv6Addr::from(reader.array::<16>()?).into();
                    records.addresses.entry(owner).or_default().push((address, lifetime));
                }
                (CLASS_INTERNET, TYPE_CNAME, _) => {
                    records.aliases.insert(owner, (reader.name()?, lifetime));
                }
                (CLASS_INTERNET, TYPE_SOA, _) => {
                    // Two names and five numbers, of which the last is how long nothing holds (RFC 2308).
                    reader.name()?;
                    reader.name()?;
                    reader.array::<16>()?;
                    let nothing = Duration::from_secs(reader.u32()?.into());
                    records.nothing_lifetime = Some(nothing.min(lifetime));
                }
                _ => {}
            }
            reader.at = end;
        }
        Ok(records)
    }

    /// Follows the name's aliases to its addresses.
    fn reply(&self, name: &str) -> Reply {
        let (mut name, mut lifetime) = (name, Duration::MAX);
        for _ in 0..ALIASES_MAX {
            if let Some(found) = self.addresses.get(name) {
                let mut addresses = Vec::new();
                for (address, holds) in found {
                    lifetime = lifetime.min(*holds);
                    if !addresses.contains(address) && addresses.len() < ADDRESSES_MAX {
                        addresses.push(*address);
                    }
                }
                return Reply::Addresses(addresses, lifetime);
            }
            let Some((other, holds)) = self.aliases.get(name) else { break };
            (name, lifetime) = (other, lifetime.min(*holds));
        }
        Reply::Nothing(self.nothing_lifetime.unwrap_or(NOTHING_LIFETIME))
    }
}

/// Reads a message. Every step is checked against its end.
struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl Reader<'_> {
    fn array<const N: usize>(&mut self) -> Result<[u8; N], Unfit> {
        let bytes = self.bytes.get(self.at..self.at + N).ok_or(Unfit)?;
        self.at += N;
        bytes.try_into().map_err(|_| Unfit)
    }

    fn u16(&mut self) -> Result<u16, Unfit> {
        self.array().map(u16::from_be_bytes)
    }

    fn u32(&mut self) -> Result<u32, Unfit> {
        self.array().map(u32::from_be_bytes)
    }

    /// A name in lower case, without its last dot. What it refers to lies before it, so that it ends.
    fn name(&mut self) -> Result<String, Unfit> {
        let mut name = String::new();
        let (mut at, mut limit, mut after) = (self.at, self.at, None);
        loop {
            let length = *self.bytes.get(at).ok_or(Unfit)?;
            match length {
                0 => {
                    self.at = after.unwrap_or(at + 1);
                    return Ok(name);
                }
                1..=63 => {
                    let label = self.bytes.get(at + 1..at + 1 + usize::from(length)).ok_or(Unfit)?;
                    if !name.is_empty() {
                        name.push('.');
                    }
                    // Bytes of no text stand for themselves and equal nothing that is asked for.
                    name.extend(label.iter().map(|byte| char::from(byte.to_ascii_lowercase())));
                    if name.len() > 2 * NAME_BYTES_MAX {
                        return Err(Unfit);
                    }
                    at += 1 + usize::from(length);
                }
                192.. => {
                    let low = *self.bytes.get(at + 1).ok_or(Unfit)?;
                    let to = (usize::from(length & 0x3f) << 8) | usize::from(low);
                    if to >= limit {
                        return Err(Unfit);
                    }
                    after = after.or(Some(at + 2));
                    (at, limit) = (to, to);
                }
                64..=191 => return Err(Unfit),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn question() -> Question {
        Question::new("www.Example.org", Family::V4).unwrap()
    }

    /// An answer to the question, with this many records in these bytes.
    fn answer(question: &Question, flags: u16, counts: [u16; 2], records: &[u8]) -> Vec<u8> {
        let mut bytes = question.encode(1232);
        bytes.truncate(bytes.len() - 11);
        bytes[2..4].copy_from_slice(&(FLAG_ANSWER | flags).to_be_bytes());
        bytes[6..8].copy_from_slice(&counts[0].to_be_bytes());
        bytes[8..10].copy_from_slice(&counts[1].to_be_bytes());
        bytes[10..12].copy_from_slice(&[0, 0]);
        bytes.extend(records);
        bytes
    }

    fn record(owner: &[u8], kind: u16, seconds: u32, data: &[u8]) -> Vec<u8> {
        let (kind, length) = (kind.to_be_bytes(), (data.len() as u16).to_be_bytes());
        [owner, &kind, &[0, 1], &seconds.to_be_bytes(), &length, data].concat()
    }

    /// Refers to the name of the question.
    const ASKED: &[u8] = &[192, 12];

    #[test]
    fn aliases_lead_to_addresses_and_the_shortest_lifetime_holds() {
        let question = question();
        let alias = record(ASKED, TYPE_CNAME, 60, b"\x03CDN\xc0\x10");
        let stranger = record(b"\x05other\xc0\x10", TYPE_A, 1, &[192, 0, 2, 9]);
        let address = record(b"\x03cdn\xc0\x10", TYPE_A, 300, &[198, 51, 100, 1]);
        let records = [alias, stranger, address.clone(), address].concat();
        let bytes = answer(&question, 0, [4, 0], &records);
        let expected = Reply::Addresses(vec![IpAddr::from([198, 51, 100, 1])], Duration::from_secs(60));
        assert_eq!(Reply::decode(&question, &bytes).unwrap(), expected);
        for length in 0..bytes.len() {
            assert!(Reply::decode(&question, &bytes[..length]).is_err(), "cut at {length}");
        }
    }

    #[test]
    fn what_is_no_answer_to_the_question_is_passed_over() {
        let question = question();
        let records = record(ASKED, TYPE_A, 300, &[198, 51, 100, 1]);
        let right = answer(&question, 0, [1, 0], &records);
        assert!(Reply::decode(&question, &right).is_ok());
        let with = |at: usize, byte: u8| {
            let mut wrong = right.clone();
            wrong[at] ^= byte;
            Reply::decode(&question, &wrong)
        };
        let kind = right.len() - records.len() - 3;
        for (at, byte) in [(0, 1), (1, 1), (2, 0x80), (2, 0x08), (5, 1), (13, 1), (kind, 1)] {
            assert!(with(at, byte).is_err(), "byte {at}");
        }
    }

    #[test]
    fn names_that_go_round_in_circles_end() {
        let question = question();
        for owner in [&[192, 33][..], &[192, 34], &[1, b'a', 192, 33], &[192], &[64], &[255, 255]] {
            let bytes = answer(&question, 0, [1, 0], &record(owner, TYPE_A, 1, &[1, 2, 3, 4]));
            assert!(Reply::decode(&question, &bytes).is_err(), "{owner:?}");
        }
        let circle = record(ASKED, TYPE_CNAME, 1, ASKED);
        let bytes = answer(&question, 0, [1, 0], &circle);
        assert_eq!(Reply::decode(&question, &bytes).unwrap(), Reply::Nothing(NOTHING_LIFETIME));
    }

    #[test]
    fn nothing_truncation_and_failure_are_told_apart() {
        let question = question();
        let numbers = [&[0; 16][..], &7u32.to_be_bytes()].concat();
        let soa = record(b"\0", TYPE_SOA, 60, &[&[0, 0], &numbers[..]].concat());
        let reply = |flags, counts, records: &[u8]| {
            Reply::decode(&question, &answer(&question, flags, counts, records)).unwrap()
        };
        for outcome in [NO_ERROR, NO_SUCH_NAME] {
            assert_eq!(reply(outcome, [0, 1], &soa), Reply::Nothing(Duration::from_secs(7)));
        }
        assert_eq!(reply(FLAG_TRUNCATED, [0, 0], &[]), Reply::Truncated);
        assert_eq!(reply(2, [0, 0], &[]), Reply::Failed);
        assert!(Question::new("a..b", Family::V4).is_none());
        assert!(Question::new(&"a".repeat(64), Family::V4).is_none());
    }
}
