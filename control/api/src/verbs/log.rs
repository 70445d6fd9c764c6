//! GET of `pods/NAME/log`: what a container has written, from the pod's node.

use std::{io, pin::Pin};

use axum::{body::Body, response::Response};
use bytes::Bytes;
use coracle_objects::{FieldError, LogOptions, fields};
use futures::{Stream, StreamExt, stream};
use http::{HeaderValue, header};
use serde_json::Value;

use crate::{
    answer,
    error::ApiError,
    options::Query,
    request::Request,
    router::Api,
    storage::{Nodes, Storage},
    verbs::list,
};

pub async fn log<S: Storage, N: Nodes>(api: &Api<S, N>, request: &Request) -> Result<Response, ApiError> {
    let kind = request.kind();
    let key = request.key()?;
    let mut options = parse(&request.query)?;
    let view = list::view_at_least(&api.storage, None).await?;
    let object = view.get(&key).ok_or_else(|| ApiError::not_found(kind, &key.name.name))?;
    let pod = answer::present_value(kind, object);
    options.container = container(&pod, &options.container)?;
    check_started(&pod, &options)?;
    let node = fields::text(&pod, "/spec/nodeName");
    let stream = api.nodes.logs(node, &object.meta.uid, options.clone()).await?;
    let body = limited(Box::pin(stream), options.limit_bytes);
    let mut response = Response::new(Body::from_stream(body));
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain"));
    Ok(response)
}

fn parse(query: &Query) -> Result<LogOptions, ApiError> {
    let options = LogOptions {
        container: query.get("container").unwrap_or("").to_owned(),
        follow: query.flag("follow").unwrap_or(false),
        previous: query.flag("previous").unwrap_or(false),
        since_seconds: query.integer("sinceSeconds")?,
        since_time: query.get("sinceTime").map(str::to_owned),
        tail_lines: query.integer("tailLines")?,
        timestamps: query.flag("timestamps").unwrap_or(false),
        limit_bytes: query.integer("limitBytes")?,
    };
    let errors: Vec<FieldError> = options.validate();
    if errors.is_empty() {
        return Ok(options);
    }
    Err(ApiError::Invalid {
        group: String::new(),
        kind: "PodLogOptions".to_owned(),
        name: String::new(),
        errors,
    })
}

fn names<'a>(pod: &'a Value, field: &str) -> Vec<&'a str> {
    fields::list(pod, field).iter().map(|container| fields::text(container, "/name")).collect()
}

/// The container that is meant: the only one where none is named.
fn container(pod: &Value, asked: &str) -> Result<String, ApiError> {
    let name = fields::text(pod, "/metadata/name");
    let (containers, init) = (names(pod, "/spec/containers"), names(pod, "/spec/initContainers"));
    let ephemeral = names(pod, "/spec/ephemeralContainers");
    if asked.is_empty() {
        if let ([only], true, true) = (containers.as_slice(), init.is_empty(), ephemeral.is_empty()) {
            return Ok((*only).to_owned());
        }
        let mut text = format!(
            "a container name must be specified for pod {name}, choose one of: [{}]",
            containers.join(" ")
        );
        if !init.is_empty() {
            text.push_str(&format!(" or one of the init containers: [{}]", init.join(" ")));
        }
        if !ephemeral.is_empty() {
            text.push_str(&format!(" or one of the ephemeral containers: [{}]", ephemeral.join(" ")));
        }
        return Err(ApiError::BadRequest(text));
    }
    if [containers, init, ephemeral].iter().any(|names| names.contains(&asked)) {
        return Ok(asked.to_owned());
    }
    Err(ApiError::BadRequest(format!("container {asked} is not valid for pod {name}")))
}

/// What the pod's status already tells about a log that cannot be there, in the words of a kubelet.
fn check_started(pod: &Value, options: &LogOptions) -> Result<(), ApiError> {
    let (name, container) = (fields::text(pod, "/metadata/name"), options.container.as_str());
    if fields::text(pod, "/spec/nodeName").is_empty() {
        return Err(ApiError::BadRequest(format!("pod {name} does not have a host assigned")));
    }
    let statuses =
        ["/status/containerStatuses", "/status/initContainerStatuses", "/status/ephemeralContainerStatuses"];
    let status = statuses
        .iter()
        .flat_map(|field| fields::list(pod, field))
        .find(|status| fields::text(status, "/name") == container);
    let Some(status) = status else {
        return Err(ApiError::BadRequest(format!(
            "container \"{container}\" in pod \"{name}\" is waiting to start: ContainerCreating"
        )));
    };
    let has_last = fields::present(status, "/lastState/terminated");
    if options.previous {
        if !has_last {
            return Err(ApiError::BadRequest(format!(
                "previous terminated container \"{container}\" in pod \"{name}\" not found"
            )));
        }
        return Ok(());
    }
    if fields::present(status, "/state/waiting") && !has_last {
        let reason = fields::text(status, "/state/waiting/reason");
        let reason = match reason {
            "ErrImagePull" | "ImagePullBackOff" | "InvalidImageName" | "ErrImageNeverPull" => {
                "trying and failing to pull image"
            }
            "" => "ContainerCreating",
            other => other,
        };
        let verb =
            if reason.starts_with("trying") { "is waiting to start: trying" } else { "is waiting to start:" };
        let rest = reason.strip_prefix("trying ").unwrap_or(reason);
        return Err(ApiError::BadRequest(format!(
            "container \"{container}\" in pod \"{name}\" {verb} {rest}"
        )));
    }
    Ok(())
}

type LogStream = Pin<Box<dyn Stream<Item = io::Result<Bytes>> + Send>>;

/// Ends a stream with so many bytes: one that is followed does not wait for what comes after them.
fn limited(stream: LogStream, limit_bytes: Option<i64>) -> LogStream {
    let Some(limit) = limit_bytes.and_then(|limit| usize::try_from(limit).ok()) else { return stream };
    Box::pin(stream::unfold((stream, limit), |(mut stream, left)| async move {
        if left == 0 {
            return None;
        }
        let item = stream.next().await?.map(|bytes| bytes.slice(..bytes.len().min(left)));
        let taken = item.as_ref().map_or(0, Bytes::len);
        Some((item, (stream, left - taken)))
    }))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn text(result: Result<impl std::fmt::Debug, ApiError>) -> String {
        result.unwrap_err().to_string()
    }

    #[tokio::test]
    async fn a_limit_ends_a_log_that_goes_on() {
        let lines = ["one\n", "two\n", "three\n"].map(Bytes::from);
        let read = async |limit| {
            let followed = Box::pin(stream::iter(lines.clone().map(Ok)).chain(stream::pending()));
            let whole = limited(followed, Some(limit)).map(|item: io::Result<Bytes>| item.unwrap());
            String::from_utf8(whole.collect::<Vec<_>>().await.concat()).unwrap()
        };
        for (limit, expected) in [(0, ""), (4, "one\n"), (6, "one\ntw"), (8, "one\ntwo\n")] {
            assert_eq!(read(limit).await, expected);
        }
    }

    #[test]
    fn containers_are_chosen_and_refused_as_by_a_kubelet() {
        let mut pod = json!({ "metadata": { "name": "p" }, "spec": { "containers": [{ "name": "a" }] } });
        assert_eq!(container(&pod, "").unwrap(), "a");
        assert_eq!(text(container(&pod, "x")), "container x is not valid for pod p");
        pod["spec"]["initContainers"] = json!([{ "name": "i" }]);
        assert_eq!(
            text(container(&pod, "")),
            "a container name must be specified for pod p, choose one of: [a] or one of the init containers: [i]"
        );
        let options = LogOptions { container: "a".into(), ..LogOptions::default() };
        assert_eq!(text(check_started(&pod, &options)), "pod p does not have a host assigned");
        pod["spec"]["nodeName"] = "n".into();
        pod["status"] = json!({ "containerStatuses": [{ "name": "a", "state": { "waiting": { "reason": "CrashLoopBackOff" } } }] });
        assert_eq!(
            text(check_started(&pod, &options)),
            "container \"a\" in pod \"p\" is waiting to start: CrashLoopBackOff"
        );
        pod["status"]["containerStatuses"][0]["state"]["waiting"]["reason"] = "ErrImagePull".into();
        assert_eq!(
            text(check_started(&pod, &options)),
            "container \"a\" in pod \"p\" is waiting to start: trying and failing to pull image"
        );
        let previous = LogOptions { previous: true, ..options };
        assert_eq!(
            text(check_started(&pod, &previous)),
            "previous terminated container \"a\" in pod \"p\" not found"
        );
    }
}
