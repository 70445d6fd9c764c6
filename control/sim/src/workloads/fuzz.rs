//! One request of raw bytes, and what a small cluster makes of it: what the fuzzer runs.

use std::sync::Arc;

use coracle_objects::{Kind, kinds};

use super::{
    Progress,
    door::Ask,
    script::{Act, Form, Step},
    world::World,
};
use crate::rng::Rng;

const CONTENT_TYPES: [&str; 6] = [
    "application/json",
    "application/yaml",
    "application/vnd.kubernetes.protobuf",
    "application/merge-patch+json",
    "application/strategic-merge-patch+json",
    "application/json-patch+json",
];

/// Plays requests, each of three bytes that say what it is (kind; method and subresource; content type), two that say
/// how long its body is (the low byte first), and the body, which the end may cut off. `@uid|pods|default|x@` in a body
/// is the uid of that object. Then the cluster must come to rest, and everything in it be readable.
pub fn play_bytes(data: &[u8]) -> Result<(), String> {
    super::watch_panics();
    let mut world = World::new(&mut Rng::new(0), None, Arc::new(Progress::default()));
    let mut asks = Vec::new();
    let mut rest = data;
    while let Some((&[kind, how, content, low, high], behind)) = rest.split_first_chunk() {
        let length = usize::from(u16::from_le_bytes([low, high])).min(behind.len());
        let (body, behind) = behind.split_at(length);
        asks.push(ask(kind, how, content, body));
        rest = behind;
    }
    let played = world.play_asks(&asks);
    super::WATCHED.set(false);
    played.map_err(|broken| format!("{}\n[{}] {}", world.told.join("\n"), broken.class, broken.what))
}

fn ask(kind: u8, how: u8, content: u8, body: &[u8]) -> Ask {
    let kinds: Vec<&Arc<Kind>> = kinds().iter().filter(|kind| kind.takes("create")).collect();
    let kind = kinds[usize::from(kind) % kinds.len()];
    let collection = super::script::collection(kind, "default");
    let content_type = CONTENT_TYPES[usize::from(content) % CONTENT_TYPES.len()];
    let (method, path) = match how % 16 {
        0..=2 => ("POST", collection),
        3 => ("PUT", format!("{collection}/x")),
        4 => ("PATCH", format!("{collection}/x")),
        5 => ("PATCH", format!("{collection}/x/status")),
        6 => ("PUT", format!("{collection}/x/scale")),
        7 => ("DELETE", format!("{collection}/x")),
        8 => ("PUT", format!("{collection}/x/status")),
        9 => ("PATCH", format!("{collection}/x/scale")),
        10 => ("POST", format!("{collection}/x/binding")),
        11 => ("PUT", "/api/v1/namespaces/default/finalize".to_owned()),
        12 => ("POST", format!("{collection}?fieldValidation=Strict")),
        13 => ("POST", format!("{collection}?fieldValidation=Ignore")),
        14 => ("PUT", format!("{collection}/x?fieldValidation=Warn")),
        _ => ("DELETE", collection),
    };
    Ask { method, path, content_type, accept: "", body: body.to_vec() }
}

/// The requests of a script in the form that [`play_bytes`] reads: seeds for a fuzzer.
pub fn as_bytes(script: &super::Script) -> Vec<u8> {
    let kinds: Vec<&Arc<Kind>> = kinds().iter().filter(|kind| kind.takes("create")).collect();
    let mut all = Vec::new();
    for Step { act, .. } in &script.steps {
        let Act::Write(write) = act else { continue };
        let ask = write.unresolved();
        let number = kinds.iter().position(|kind| ask.path.contains(&format!("/{}", kind.plural)));
        let how = match (ask.method, write.form) {
            ("POST", _) => 0,
            ("PUT", _) => 3,
            ("PATCH", _) => 4,
            _ => 7,
        };
        let content = match write.form {
            Form::None | Form::Json => 0,
            Form::Yaml => 1,
            Form::Merge => 3,
            Form::Strategic => 4,
            Form::JsonPatch => 5,
        };
        let length = u16::try_from(ask.body.len()).unwrap_or(u16::MAX);
        all.extend([number.unwrap_or(0) as u8, how, content]);
        all.extend(length.to_le_bytes());
        all.extend(&ask.body[..usize::from(length)]);
    }
    all
}
