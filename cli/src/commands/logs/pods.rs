//! Whose logs are meant, and which container's.

use anyhow::{Context, Result, bail};
use coracle_objects::kinds::{FUNCTION_LABEL, FUNCTION_REVISIONS, FUNCTIONS, REVISION_LABEL};
use serde_json::Value;

use crate::{
    args::LogsArgs,
    client::{Cluster, Refused, ServedKind, native_kind},
    names::encode,
    output,
};

/// The annotation that names a pod's default container, as kubectl knows it.
const DEFAULT_CONTAINER: &str = "kubectl.kubernetes.io/default-container";

/// The pods that are asked for: one, or with a selector or `--all-pods` all.
pub async fn chosen(cluster: &Cluster, args: &LogsArgs) -> Result<Vec<Value>> {
    let (selector, whose) = match (&args.selector, &args.target) {
        (Some(selector), _) => (selector.clone(), format!("the labels {selector}")),
        (None, Some(target)) => match found(cluster, target).await? {
            Found::Pod(pod) => return Ok(vec![*pod]),
            Found::Owner { selector, named } => (selector, named),
        },
        (None, None) => bail!("say whose logs: a NAME or KIND/NAME, or --selector"),
    };
    let path = native_kind("pods")?.collection(&cluster.namespace);
    let list = cluster.get(&format!("{path}?labelSelector={}", encode(&selector))).await?.unwrap_or_default();
    let mut pods = list["items"].as_array().cloned().unwrap_or_default();
    if pods.is_empty() {
        bail!("there are no pods of {whose} in namespace {}", cluster.namespace);
    }
    pods.sort_by_key(rank);
    if args.selector.is_none() && !args.all_pods {
        let name = pods[0]["metadata"]["name"].as_str().unwrap_or_default();
        if pods.len() > 1 {
            output::note(format!("Found {} pods, using pod/{name}; --all-pods shows all", pods.len()));
        }
        pods.truncate(1);
    }
    Ok(pods)
}

enum Found {
    Pod(Box<Value>),
    /// What selects pods by labels, and what it is called.
    Owner {
        selector: String,
        named: String,
    },
}

/// `pod/x`, `deploy/x`, or a name: of a pod, else of a Deployment, else of a Function.
async fn found(cluster: &Cluster, target: &str) -> Result<Found> {
    let get = async |kind: &ServedKind, name: &str| {
        let path = kind.object(&cluster.namespace, name)?;
        let request = http::Request::get(path).header("accept", "application/json");
        let (_, body) = cluster.send(request.body(Default::default())?).await?;
        serde_json::from_slice::<Value>(&body).context("the answer is not JSON")
    };
    let Some((kind, name)) = target.split_once('/') else {
        let pod = match get(&native_kind("pods")?, target).await {
            Err(error) if Refused::is_absence(&error) => error,
            pod => return Ok(Found::Pod(Box::new(pod?))),
        };
        for kind in [native_kind("deployments")?, native_kind("functions")?] {
            match get(&kind, target).await {
                Err(error) if Refused::is_absence(&error) => {}
                found => return owner(&kind, target, &found?),
            }
        }
        return Err(pod);
    };
    let kind = cluster.kind(kind).await?;
    let object = get(&kind, name).await?;
    match kind.resource().as_str() {
        "pods" => Ok(Found::Pod(Box::new(object))),
        _ => owner(&kind, name, &object),
    }
}

fn owner(kind: &ServedKind, name: &str, object: &Value) -> Result<Found> {
    let named = format!("{}/{name}", kind.prefix());
    let label = match kind.resource().as_str() {
        FUNCTIONS => Some(FUNCTION_LABEL),
        FUNCTION_REVISIONS => Some(REVISION_LABEL),
        _ => None,
    };
    if let Some(label) = label {
        return Ok(Found::Owner { selector: format!("{label}={name}"), named });
    }
    let selector = &object["spec"]["selector"];
    // A Service's selector is the labels themselves.
    let is_plain = kind.resource() == "services" || kind.resource() == "replicationcontrollers";
    let text = if is_plain { labels(selector) } else { label_selector(selector) };
    match text {
        Some(selector) => Ok(Found::Owner { selector, named }),
        None => bail!("{named} selects no pods, so it has no logs: name a pod or a Deployment"),
    }
}

fn labels(labels: &Value) -> Option<String> {
    let pairs = labels.as_object()?.iter().map(|(key, value)| Some(format!("{key}={}", value.as_str()?)));
    let pairs = pairs.collect::<Option<Vec<_>>>()?;
    (!pairs.is_empty()).then(|| pairs.join(","))
}

/// A LabelSelector in the words of a query.
fn label_selector(selector: &Value) -> Option<String> {
    let mut parts: Vec<String> = labels(&selector["matchLabels"]).into_iter().collect();
    for expression in selector["matchExpressions"].as_array().into_iter().flatten() {
        let key = expression["key"].as_str()?;
        let values: Vec<&str> =
            expression["values"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
        parts.push(match expression["operator"].as_str()? {
            "In" => format!("{key} in ({})", values.join(",")),
            "NotIn" => format!("{key} notin ({})", values.join(",")),
            "Exists" => key.to_owned(),
            "DoesNotExist" => format!("!{key}"),
            _ => return None,
        });
    }
    (!parts.is_empty()).then(|| parts.join(","))
}

/// Those come first that have something to say: placed, running, ready, then the oldest.
fn rank(pod: &Value) -> (bool, u8, bool, String) {
    let conditions = pod["status"]["conditions"].as_array();
    let ready = conditions.into_iter().flatten().any(|one| one["type"] == "Ready" && one["status"] == "True");
    let phase = match pod["status"]["phase"].as_str() {
        Some("Running") => 0,
        Some("Pending") => 2,
        _ => 1,
    };
    let age = pod["metadata"]["creationTimestamp"].as_str().unwrap_or_default();
    (pod["spec"]["nodeName"].as_str().is_none_or(str::is_empty), phase, !ready, age.to_owned())
}

/// All containers of a pod, those that prepare it first.
pub fn containers(pod: &Value) -> Vec<String> {
    let of = |field: &str| names(&pod["spec"][field]);
    [of("initContainers"), of("containers"), of("ephemeralContainers")].concat()
}

/// The container whose log is shown where none is named, and those of which it is one.
pub fn default_container(pod: &Value) -> (String, Vec<String>) {
    let all = names(&pod["spec"]["containers"]);
    let annotated = pod["metadata"]["annotations"][DEFAULT_CONTAINER].as_str();
    match annotated.filter(|named| all.iter().any(|one| one == named)) {
        Some(named) => (named.to_owned(), Vec::new()),
        None => {
            (all.first().cloned().unwrap_or_default(), [all, names(&pod["spec"]["initContainers"])].concat())
        }
    }
}

fn names(containers: &Value) -> Vec<String> {
    let names = containers.as_array().into_iter().flatten().filter_map(|one| one["name"].as_str());
    names.map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn selectors_are_put_in_words() {
        let selector = json!({ "matchLabels": { "app": "a" }, "matchExpressions": [
            { "key": "tier", "operator": "In", "values": ["x", "y"] }, { "key": "old", "operator": "DoesNotExist" },
        ] });
        assert_eq!(label_selector(&selector).unwrap(), "app=a,tier in (x,y),!old");
        assert_eq!(label_selector(&json!({})), None, "nothing selects nothing, not everything");
        let kind = native_kind("svc").unwrap();
        let service = json!({ "spec": { "selector": { "app": "b" } } });
        assert!(
            matches!(owner(&kind, "s", &service), Ok(Found::Owner { selector, .. }) if selector == "app=b")
        );
        let said =
            owner(&native_kind("nodes").unwrap(), "n", &json!({ "spec": {} })).err().unwrap().to_string();
        assert!(said.starts_with("node/n selects no pods"), "{said}");
    }

    #[test]
    fn a_pod_that_has_something_to_say_comes_first() {
        let pod = |name: &str, node: &str, phase: &str, ready: &str| {
            json!({ "metadata": { "name": name }, "spec": { "nodeName": node },
                    "status": { "phase": phase, "conditions": [{ "type": "Ready", "status": ready }] } })
        };
        let mut pods = [
            pod("unplaced", "", "Pending", "False"),
            pod("starting", "n", "Pending", "False"),
            pod("failed", "n", "Failed", "False"),
            pod("crashing", "n", "Running", "False"),
            pod("ready", "n", "Running", "True"),
        ];
        pods.sort_by_key(rank);
        let names: Vec<_> = pods.iter().map(|pod| pod["metadata"]["name"].as_str().unwrap()).collect();
        assert_eq!(names, ["ready", "crashing", "failed", "starting", "unplaced"]);
    }

    #[test]
    fn a_pods_default_container_is_the_first_or_the_annotated() {
        let mut pod = json!({ "metadata": {}, "spec": {
            "containers": [{ "name": "a" }, { "name": "b" }], "initContainers": [{ "name": "i" }],
        } });
        assert_eq!(default_container(&pod), ("a".into(), vec!["a".into(), "b".into(), "i".into()]));
        assert_eq!(containers(&pod), ["i", "a", "b"]);
        pod["metadata"]["annotations"] = json!({ DEFAULT_CONTAINER: "b" });
        assert_eq!(default_container(&pod), ("b".into(), vec![]));
    }
}
