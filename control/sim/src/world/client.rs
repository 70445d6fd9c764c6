//! The clients: each does one operation after the other at some member, and remembers what it has seen of the objects.

use coracle_objects::transaction::Found;
use coracle_objects::{Expect, Refusal, Revision};

use super::member::Member;
use super::{Event, Who, World};
use crate::checker::history::{Ending, OpId, OpKind};
use crate::checker::keys::KeyId;
use crate::checker::model::{Spec, Value};
use crate::options::MS;
use crate::trace::Note;

/// Operations with a certain end that each client must get done after the last fault.
const OPS_AFTER_HEALING: u32 = 3;

/// On whose behalf an operation is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Asker {
    Client(usize),
    /// It lists before it watches.
    Watcher(usize),
}

#[derive(Debug)]
pub struct Client {
    /// Revision and uid of each object, as last seen.
    known: Vec<Option<(Revision, String)>>,
    member: Option<u64>,
    pub done_since_healing: u32,
    pub busy: bool,
}

impl Client {
    pub fn new(keys: usize) -> Client {
        Client { known: vec![None; keys], member: None, done_since_healing: 0, busy: false }
    }

    pub fn is_done(&self) -> bool {
        self.done_since_healing >= OPS_AFTER_HEALING && !self.busy
    }
}

impl World {
    /// A client begins its next operation.
    pub fn client_turn(&mut self, number: usize) {
        if self.clients[number].is_done() {
            return;
        }
        let Some(who) = self.member_for(number) else {
            return self.after(20 * MS, Event::Client(number));
        };
        let read = self.rng.chance(self.plan.reads);
        let kind = if read { OpKind::Read } else { OpKind::Write(self.invent(number)) };
        self.clients[number].busy = true;
        self.begin(Asker::Client(number), who, kind);
    }

    /// Sends an operation to a member.
    pub fn begin(&mut self, asker: Asker, who: Who, kind: OpKind) -> OpId {
        let read = kind == OpKind::Read;
        let op = self.history.begin(asker, kind, self.now);
        let client = match asker {
            Asker::Client(number) => number,
            Asker::Watcher(number) => 100 + number,
        };
        self.note(Note::Invoked { op, client, member: who.id, read });
        let delay = self.rng.between(100, 2 * MS);
        self.after(delay, Event::Ask(who, op));
        op
    }

    /// Mostly the one that served the client last.
    fn member_for(&mut self, number: usize) -> Option<Who> {
        let last = self.clients[number].member.filter(|_| !self.rng.chance(150));
        let last = last.and_then(|id| self.members.get(&id)).and_then(Member::who);
        let who = match last {
            Some(who) => Some(who),
            None => self.any_member(),
        };
        self.clients[number].member = who.map(|who| who.id);
        who
    }

    /// One that runs; after the last fault, one that is a member still.
    pub fn any_member(&mut self) -> Option<Who> {
        let mut running = self.running();
        if let Some(config) = self.final_config() {
            running.retain(|who| config.contains(&who.id));
        }
        self.rng.pick(&running).copied()
    }

    /// An answer leaves its member.
    pub fn answer(&mut self, op: OpId, ending: Ending) {
        let lost = !self.healed && self.rng.chance(self.plan.lost_answers);
        let ending = match ending {
            Ending::Read(_) | Ending::ReadFailed if lost => Ending::ReadFailed,
            _ if lost => Ending::Unknown,
            ending => ending,
        };
        let delay = self.rng.between(100, 2 * MS);
        self.after(delay, Event::Told(op, Box::new(ending)));
    }

    /// An operation has ended for whom it was.
    pub fn told(&mut self, op: OpId, ending: Ending) {
        let (what, revision) = match &ending {
            Ending::Applied(applied) => ("applied", applied.revision),
            Ending::Refused(_) => ("refused", 0),
            Ending::NotDone => ("not done", 0),
            Ending::Unknown => ("unknown", 0),
            Ending::Read(view) => ("read", view.revision),
            Ending::ReadFailed => ("read failed", 0),
        };
        self.note(Note::Answered { op, what, revision });
        match &ending {
            Ending::Applied(_) => self.counts.writes += 1,
            Ending::Refused(_) => self.counts.refusals += 1,
            Ending::NotDone => self.counts.not_done += 1,
            Ending::Unknown => self.counts.unknown += 1,
            Ending::Read(_) => self.counts.reads += 1,
            Ending::ReadFailed => {}
        }
        match self.asker(op) {
            Asker::Client(number) => {
                self.learn(number, op, &ending);
                let client = &mut self.clients[number];
                client.busy = false;
                let certain = matches!(ending, Ending::Applied(_) | Ending::Refused(_) | Ending::Read(_));
                if certain && self.healed {
                    client.done_since_healing += 1;
                } else if !certain {
                    client.member = None;
                }
                let pause = self.rng.below(self.plan.think);
                self.after(pause + 1, Event::Client(number));
            }
            Asker::Watcher(number) => self.listed(number, &ending),
        }
        self.history.end(op, self.now, ending);
    }

    fn learn(&mut self, number: usize, op: OpId, ending: &Ending) {
        let known = &mut self.clients[number].known;
        match (ending, &self.history.op(op).kind) {
            (Ending::Applied(applied), OpKind::Write(spec)) => {
                for (key, value) in &spec.changes {
                    known[*key] = value.as_ref().map(|value| (applied.revision, value.uid.clone()));
                }
            }
            (Ending::Refused(Refusal::Precondition { key, found, .. }), _) => {
                if let Some(id) = self.keys.id(key) {
                    known[id] = match found {
                        Found::Nothing => None,
                        Found::Object { revision, uid, .. } => Some((*revision, uid.clone())),
                    };
                }
            }
            (Ending::Refused(Refusal::NotFound { key }), _) => {
                if let Some(id) = self.keys.id(key) {
                    known[id] = None;
                }
            }
            (Ending::Read(view), _) => {
                for (id, known) in known.iter_mut().enumerate() {
                    let object = view.get(self.keys.key(id));
                    *known = object.map(|object| (object.revision, object.meta.uid.clone()));
                }
            }
            _ => {}
        }
    }

    /// A write such as API servers and controllers make them.
    fn invent(&mut self, number: usize) -> Spec {
        let key = self.rng.index(self.plan.keys);
        let known = self.clients[number].known[key].clone();
        let op = self.history.next_id();
        match (self.rng.below(100), known) {
            (0..18, _) | (18..55, None) => Spec {
                preconditions: vec![(key, Expect::Absent)],
                changes: vec![(key, Some(self.value(op, key, None)))],
            },
            (18..55, Some((revision, uid))) => Spec {
                preconditions: vec![(key, Expect::Revision(revision))],
                changes: vec![(key, Some(self.value(op, key, Some(uid))))],
            },
            (55..68, Some((revision, _))) => {
                Spec { preconditions: vec![(key, Expect::Revision(revision))], changes: vec![(key, None)] }
            }
            (55..73, _) => Spec { preconditions: vec![], changes: vec![(key, None)] },
            (73..82, _) => {
                Spec { preconditions: vec![], changes: vec![(key, Some(self.value(op, key, None)))] }
            }
            (82..88, Some((_, uid))) => Spec {
                preconditions: vec![(key, Expect::Uid(uid.clone())), (key, Expect::NotDeleting)],
                changes: vec![(key, Some(self.value(op, key, Some(uid))))],
            },
            (_, known) => self.invent_many(number, op, key, known),
        }
    }

    /// Several objects under conditions on several.
    fn invent_many(
        &mut self,
        number: usize,
        op: OpId,
        key: KeyId,
        known: Option<(Revision, String)>,
    ) -> Spec {
        let other = (key + 1 + self.rng.index(self.plan.keys - 1)) % self.plan.keys;
        let expect = |known: Option<(Revision, String)>| match known {
            None => Expect::Absent,
            Some((revision, _)) => Expect::Revision(revision),
        };
        let other_known = self.clients[number].known[other].clone();
        let deletes = other_known.is_some() && self.rng.chance(300);
        let only_looks = !deletes && self.rng.chance(200);
        let mut preconditions = vec![(key, expect(known))];
        if deletes || !self.rng.chance(300) {
            preconditions.push((other, expect(other_known)));
        }
        let mut changes = vec![(key, Some(self.value(op, key, None)))];
        if !only_looks {
            changes.push((other, if deletes { None } else { Some(self.value(op, other, None)) }));
        }
        if self.rng.chance(500) {
            changes.reverse();
        }
        Spec { preconditions, changes }
    }

    fn value(&mut self, op: OpId, key: KeyId, uid: Option<String>) -> Value {
        let uid = uid.unwrap_or_else(|| format!("u{op}"));
        let deleting = self.rng.chance(80);
        let mark = if deleting { r#","deletionTimestamp":"2030-01-01T00:00:00Z""# } else { "" };
        let filler = "x".repeat(if self.rng.chance(40) { 3_000 } else { self.rng.index(120) });
        let name = &self.keys.key(key).name;
        let draft = format!(
            r#"{{"metadata":{{"namespace":"{}","name":"{}","uid":"{uid}"{mark}}},"op":"{op}.{key}","filler":"{filler}"}}"#,
            name.namespace, name.name
        );
        Value { uid, deleting, draft: draft.into() }
    }
}
