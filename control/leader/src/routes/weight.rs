//! What a node keeps of a pod in memory, reckoned from its JSON: what a user writes in a byte may cost a node many.

use coracle_objects::Object;
use serde::{Deserialize, de::IgnoredAny};
use serde_json::value::RawValue;

/// Of a struct: the largest is an environment variable.
const STRUCT_BYTES: usize = 352;
/// Of a value beside its text.
const VALUE_BYTES: usize = 64;
/// Of a container: its state, its status, and what it was last told of.
const CONTAINER_BYTES: usize = 14 << 10;

/// Of a status beside its containers'.
const STATUS_BYTES: usize = 8 << 10;

/// In bytes, from above. The status counts where it takes more than the node writes of it, container by container.
pub fn of_pod(pod: &Object) -> usize {
    let Ok(parts) = pod.parse::<Parts>() else { return of_text(&pod.json, 0) };
    let spec: Spec = parts.spec.and_then(|spec| serde_json::from_str(spec.get()).ok()).unwrap_or_default();
    let containers = [spec.containers, spec.init_containers].iter().flatten().map(Vec::len).sum();
    let texts = [parts.metadata, parts.spec].into_iter().flatten();
    let text: String = texts.map(RawValue::get).collect();
    let status = parts.status.map_or(0, |status| of_text(status.get().as_bytes(), 0));
    of_text(text.as_bytes(), containers) + status.saturating_sub(STATUS_BYTES + containers * CONTAINER_BYTES)
}

fn of_text(json: &[u8], containers: usize) -> usize {
    let (mut bytes, mut is_text, mut is_escaped) = (json.len(), false, false);
    for byte in json {
        match byte {
            _ if is_escaped => is_escaped = false,
            b'\\' => is_escaped = is_text,
            b'"' => is_text = !is_text,
            b'{' if !is_text => bytes += STRUCT_BYTES,
            b',' if !is_text => bytes += VALUE_BYTES,
            _ => {}
        }
    }
    bytes + containers * CONTAINER_BYTES
}

#[derive(Deserialize)]
struct Parts<'a> {
    #[serde(borrow)]
    metadata: Option<&'a RawValue>,
    #[serde(borrow)]
    spec: Option<&'a RawValue>,
    #[serde(borrow)]
    status: Option<&'a RawValue>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Spec {
    containers: Option<Vec<IgnoredAny>>,
    init_containers: Option<Vec<IgnoredAny>>,
}

#[cfg(test)]
mod tests {
    use coracle_objects::ObjectKey;
    use serde_json::{Value, json};

    use super::*;

    fn weight(spec: Value, status: Value) -> usize {
        let draft = json!({ "metadata": { "name": "p", "namespace": "d" }, "spec": spec, "status": status })
            .to_string();
        of_pod(&Object::from_draft(ObjectKey::new("pods", "d", "p"), draft.as_bytes(), 1).unwrap())
    }

    #[test]
    fn what_is_short_to_write_and_long_to_keep_weighs_what_it_takes() {
        let container = |env: usize| {
            let env: Vec<Value> = (0..env).map(|at| json!({ "name": format!("A{at}") })).collect();
            json!({ "name": "c", "image": "i", "env": env })
        };
        let of = |spec: Value| weight(spec, json!({ "phase": "Pending" }));
        let one = of(json!({ "containers": [container(0)] }));
        assert!((14 << 10..20 << 10).contains(&one), "{one}");
        let many =
            of(json!({ "initContainers": vec![container(0); 400], "containers": vec![container(0); 600] }));
        assert!(many > 1000 * CONTAINER_BYTES, "{many}");
        // As many bytes as 48,000 variables took on a node.
        let variables = of(json!({ "containers": vec![container(2400); 20] }));
        assert!((16_500_000..25_000_000).contains(&variables), "{variables}");
        let arguments = of(json!({ "containers": [{ "args": vec!["a"; 9900] }] }));
        assert!(arguments > 37 * 9900, "{arguments}");
        // What looks like structs in a text is text.
        let texts = of(json!({ "containers": [{ "args": ["{\\\",".repeat(10_000)] }] }));
        assert!(texts < one + 100_000, "{texts}");
        // What the node says of it changes nothing, what others say may; and one that cannot be read is weighed too.
        let spec = json!({ "containers": [container(0)] });
        let state = json!({ "waiting": { "reason": "ImagePullBackOff", "message": "m".repeat(1000) } });
        let told = json!({ "name": "c", "image": "i", "state": state, "lastState": {} });
        let conditions =
            vec![json!({ "type": "Ready", "status": "False", "reason": "r", "message": "m" }); 5];
        let status = |told: Vec<Value>| json!({ "conditions": conditions, "containerStatuses": told });
        assert_eq!(weight(spec.clone(), status(vec![told])), one);
        assert!(weight(spec, status(vec![json!({}); 10_000])) > 10_000 * STRUCT_BYTES);
        assert!(of(json!({ "containers": { "a": vec!["x"; 9900] } })) > 9900 * VALUE_BYTES);
    }
}
