//! `/version`, `/healthz`, `/livez`, `/readyz`.

use std::time::Duration;

use axum::{body::Body, response::Response};
use http::{HeaderValue, StatusCode, header};
use serde_json::json;
use tokio::time::timeout;

use crate::{
    answer,
    config::{ApiConfig, Checks},
    error::ApiError,
    options::Query,
    router::Api,
    storage::{Nodes, Storage},
};

/// The version of the Kubernetes API that is served.
pub const KUBERNETES_MINOR: &str = "33";

/// The check that a quorum answers.
const STORAGE: &str = "storage";

/// Until it must have answered, as kube-apiserver gives its etcd.
const STORAGE_TIMEOUT: Duration = Duration::from_secs(2);

/// The Kubernetes version with ours as build metadata.
pub fn version(config: &ApiConfig) -> Response {
    let body = json!({
        "major": "1",
        "minor": KUBERNETES_MINOR,
        "gitVersion": format!("v1.{KUBERNETES_MINOR}.0+coracle.{}", config.version),
        "gitCommit": config.cluster_id,
        "gitTreeState": "clean",
        "buildDate": "1970-01-01T00:00:00Z",
        "goVersion": "",
        "compiler": "rustc",
        "platform": format!("{}/{}", std::env::consts::OS, std::env::consts::ARCH),
    });
    answer::json_value(StatusCode::OK, &body)
}

/// Runs an endpoint's checks: all, or the one that is named. `?verbose` lists them, `?exclude=` leaves some out.
///
/// Answers 200 or 500; a name that is no check of the endpoint is 404. Excluding such a name is only warned of.
pub async fn check<S: Storage, N: Nodes>(
    api: &Api<S, N>,
    endpoint: &str,
    named: Option<&str>,
    query: &Query,
) -> Result<Response, ApiError> {
    let excluded: Vec<&str> = query.all("exclude").filter(|name| !name.is_empty()).collect();
    let wanted = |name: &str| if let Some(named) = named { named == name } else { !excluded.contains(&name) };
    let mut checks: Checks = vec![("ping".to_owned(), Ok(()))];
    checks.extend((api.config.liveness)());
    if endpoint == "readyz" {
        checks.extend((api.config.readiness)());
    }
    if endpoint != "livez" {
        // It asks a quorum, so it is run only where somebody wants to know.
        let outcome = if wanted(STORAGE) { storage(api).await } else { Ok(()) };
        checks.push((STORAGE.to_owned(), outcome));
    }
    if let Some(named) = named {
        let (_, outcome) = checks.into_iter().find(|(name, _)| name == named).ok_or(ApiError::NoSuchPath)?;
        return Ok(match outcome {
            Ok(()) => text(StatusCode::OK, "ok".to_owned()),
            Err(reason) => text(StatusCode::INTERNAL_SERVER_ERROR, format!("check failed: {reason}\n")),
        });
    }
    Ok(report(endpoint, &checks, &excluded, query.has("verbose")))
}

/// A linearizable read, which needs a quorum.
async fn storage<S: Storage, N: Nodes>(api: &Api<S, N>) -> Result<(), String> {
    match timeout(STORAGE_TIMEOUT, api.storage.linearizable()).await {
        Ok(Ok(_)) => Ok(()),
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err(format!("no quorum answered within {} s", STORAGE_TIMEOUT.as_secs())),
    }
}

fn report(endpoint: &str, checks: &Checks, excluded: &[&str], verbose: bool) -> Response {
    let mut listing = String::new();
    let mut failed = false;
    for (name, outcome) in checks {
        match outcome {
            _ if excluded.contains(&name.as_str()) => listing.push_str(&format!("[+]{name} excluded: ok\n")),
            Ok(()) => listing.push_str(&format!("[+]{name} ok\n")),
            Err(reason) => {
                failed = true;
                listing.push_str(&format!("[-]{name} failed: {reason}\n"));
            }
        }
    }
    let unknown: Vec<String> = excluded
        .iter()
        .filter(|name| !checks.iter().any(|(known, _)| known == *name))
        .map(|name| format!("{name:?}"))
        .collect();
    if !unknown.is_empty() {
        let names = unknown.join(", ");
        listing.push_str(&format!("warn: some health checks cannot be excluded: no matches for {names}\n"));
    }
    if failed {
        text(StatusCode::INTERNAL_SERVER_ERROR, format!("{listing}{endpoint} check failed\n"))
    } else if verbose {
        text(StatusCode::OK, format!("{listing}{endpoint} check passed\n"))
    } else {
        text(StatusCode::OK, "ok".to_owned())
    }
}

fn text(status: StatusCode, body: String) -> Response {
    let mut response = Response::new(Body::from(body));
    *response.status_mut() = status;
    response
        .headers_mut()
        .insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    response.headers_mut().insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}
