//! Components that are hard to compile, and files that are none.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use serde_json::json;

use super::{CORE, FLOOD, Stage};
use crate::client::Rest;

/// How long the other user waits for a component of his own.
const PATIENCE: Duration = Duration::from_secs(40);

/// Locals of one function, and loops in each other around all of them: each local is a value of its own in each loop.
const LOCALS: usize = 1000;
const LOOPS: usize = 200;

const I64: u8 = 0x7e;
const VOID: u8 = 0x40;
const BLOCK: u8 = 0x02;
const LOOP: u8 = 0x03;
const END: u8 = 0x0b;
const BR_IF: u8 = 0x0d;
const LOCAL_GET: u8 = 0x20;
const LOCAL_SET: u8 = 0x21;
const I64_CONST: u8 = 0x42;
const I64_EQZ: u8 = 0x50;
const I64_ADD: u8 = 0x7c;

/// Many of one user; the answer is what another one, whose component is small, waits for.
pub async fn slow(stage: Stage) -> Result<String> {
    let rest = stage.client.rest().await?;
    for number in 0..50 {
        stage.push(&format!("hostile/slow:{number}"), &slow_module(number)).await?;
    }
    for number in 0..50 {
        stage
            .start(
                &rest,
                &format!("p{number}"),
                json!({"name": "c", "image": format!("hostile/slow:{number}")}),
            )
            .await?;
    }
    let waited = fresh_component(&stage).await?;
    Ok(format!("{}; a new component of another: {waited}", stage.summary(&rest).await?))
}

/// Until a component that the node does not know has run to its end, in the namespace of the other user.
async fn fresh_component(stage: &Stage) -> Result<String> {
    let other = Stage { namespace: "default".into(), ..stage.clone() };
    let rest = other.client.rest().await?;
    other.push("bystander/fresh:1", &module(&[], &[])).await?;
    let begun = Instant::now();
    other.start(&rest, "fresh", json!({"name": "c", "image": "bystander/fresh:1"})).await?;
    let pod = other.until(&rest, "fresh", |pod| pod["status"]["phase"] == "Succeeded", PATIENCE).await?;
    rest.call("DELETE", &other.path(CORE, "pods/fresh"), Vec::new()).await?;
    let phase = pod["status"]["phase"].as_str().unwrap_or("no status");
    Ok(format!("{phase} after {:.1} s", begun.elapsed().as_secs_f64()))
}

pub async fn malformed(stage: Stage) -> Result<String> {
    let rest = stage.client.rest().await?;
    let files = [
        ("cut", b"\0asm\x0d\0\x01\0\x01\xff\xff\xff\x7f".to_vec()),
        ("garbage", [b"\0asm\x01\0\0\0".as_slice(), &[0xa5; 100_000]].concat()),
        ("components", nested_components(5000)),
        ("blocks", module(&[], &[[BLOCK, VOID].repeat(1_000_000), [END].repeat(1_000_000)].concat())),
    ];
    let mut said = Vec::new();
    for (name, bytes) in files {
        stage.push(&format!("hostile/{name}:1"), &bytes).await?;
        stage.start(&rest, name, json!({"name": "c", "image": format!("hostile/{name}:1")})).await?;
        said.push(format!("{name}: {}", reason(&stage, &rest, name).await?));
    }
    Ok(said.join(", "))
}

/// Why a pod waits, or what it came to.
async fn reason(stage: &Stage, rest: &Rest, name: &str) -> Result<String> {
    let of = |pod: &serde_json::Value| {
        let waiting = pod["status"]["containerStatuses"][0]["state"]["waiting"]["reason"].as_str();
        waiting.filter(|reason| *reason != "ContainerCreating").map(str::to_owned)
    };
    let pod = stage.until(rest, name, |pod| of(pod).is_some(), FLOOD).await?;
    Ok(of(&pod).unwrap_or_else(|| pod["status"]["phase"].as_str().unwrap_or("no status").to_owned()))
}

/// While a slow component compiles its pod is forced away and made again.
pub async fn forced(stage: Stage) -> Result<String> {
    let rest = stage.client.rest().await?;
    stage.push("hostile/slow:0", &slow_module(0)).await?;
    let (begun, mut times, mut worst) = (Instant::now(), 0, Duration::ZERO);
    while begun.elapsed() < FLOOD {
        stage.start(&rest, "compiled", json!({"name": "c", "image": "hostile/slow:0"})).await?;
        tokio::time::sleep(Duration::from_millis(300)).await;
        let asked = Instant::now();
        let path = stage.path(CORE, "pods/compiled");
        let (status, _) = rest.call("DELETE", &format!("{path}?gracePeriodSeconds=0"), Vec::new()).await?;
        ensure!(status == 200, "a forced deletion: HTTP {status}");
        while rest.call("GET", &path, Vec::new()).await?.0 != 404 {
            ensure!(asked.elapsed() < PATIENCE, "a forced pod is still there");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        (times, worst) = (times + 1, worst.max(asked.elapsed()));
    }
    Ok(format!("{times} times, gone after {:.1} s at most", worst.as_secs_f64()))
}

/// A module of some 10 kB that takes seconds to compile; each number makes another.
fn slow_module(number: usize) -> Vec<u8> {
    let mut code = [[LOOP, VOID].repeat(LOOPS), vec![I64_CONST]].concat();
    code.extend(leb(number));
    code.push(LOCAL_SET);
    code.extend(leb(0));
    for local in 0..LOCALS {
        for operand in [local, (local * 7 + 1) % LOCALS] {
            code.push(LOCAL_GET);
            code.extend(leb(operand));
        }
        code.extend([I64_ADD, LOCAL_SET]);
        code.extend(leb((local * 13 + 5) % LOCALS));
    }
    for level in 0..LOOPS {
        code.push(LOCAL_GET);
        code.extend(leb(level));
        code.extend([I64_EQZ, BR_IF, 0, END]);
    }
    module(&[leb(1), leb(LOCALS), vec![I64]].concat(), &code)
}

/// One function, `_start`, and a memory; `locals` are its groups behind their number, which is one or none.
fn module(locals: &[u8], code: &[u8]) -> Vec<u8> {
    let body = [if locals.is_empty() { &[0][..] } else { locals }, code, &[END]].concat();
    let body = [leb(body.len()), body].concat();
    of_sections(&[
        (1, b"\x01\x60\0\0"),
        (3, b"\x01\0"),
        (5, b"\x01\0\x01"),
        (7, b"\x02\x06_start\0\0\x06memory\x02\0"),
        (10, &[leb(1), body].concat()),
    ])
}

/// A module of sections, which are their number and content.
pub fn of_sections(sections: &[(u8, &[u8])]) -> Vec<u8> {
    let mut module = b"\0asm\x01\0\0\0".to_vec();
    for (kind, bytes) in sections {
        module.push(*kind);
        module.extend(leb(bytes.len()));
        module.extend(*bytes);
    }
    module
}

/// A module that does nothing, with so many bytes that are no code; each number makes another.
pub fn large_module(number: usize, bytes: usize) -> Vec<u8> {
    let mut module = module(&[], &[]);
    let mut name = vec![1, b'x'];
    name.resize(2 + bytes, number as u8);
    module.push(0);
    module.extend(leb(name.len()));
    module.extend(name);
    module
}

fn nested_components(depth: usize) -> Vec<u8> {
    let header = b"\0asm\x0d\0\x01\0";
    (0..depth).fold(header.to_vec(), |inner, _| [header.as_slice(), &[4], &leb(inner.len()), &inner].concat())
}

/// An unsigned number as WebAssembly writes it; one below 64 is the same signed.
pub fn leb(mut number: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    loop {
        let low = (number & 0x7f) as u8;
        number >>= 7;
        if number == 0 {
            bytes.push(low);
            return bytes;
        }
        bytes.push(low | 0x80);
    }
}
