//! `/version`, `/healthz`, `/livez`, `/readyz`.

use axum::{body::Body, response::Response};
use http::{HeaderValue, StatusCode, header};
use serde_json::json;

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
pub async fn check<S: Storage, N: Nodes>(
    api: &Api<S, N>,
    endpoint: &str,
    named: Option<&str>,
    query: &Query,
) -> Result<Response, ApiError> {
    let mut checks: Checks = vec![("ping".to_owned(), Ok(()))];
    if endpoint != "livez" {
        let storage = api.storage.linearizable().await.map(|_| ()).map_err(|error| error.to_string());
        checks.push(("storage".to_owned(), storage));
    }
    if endpoint == "readyz" {
        checks.extend((api.config.readiness)());
    }
    if let Some(named) = named {
        let (_, outcome) = checks.into_iter().find(|(name, _)| name == named).ok_or(ApiError::NoSuchPath)?;
        return Ok(match outcome {
            Ok(()) => text(StatusCode::OK, "ok".to_owned()),
            Err(reason) => text(StatusCode::INTERNAL_SERVER_ERROR, format!("check failed: {reason}\n")),
        });
    }
    let excluded: Vec<&str> = query.all("exclude").collect();
    let mut listing = String::new();
    let mut failed = false;
    for (name, outcome) in &checks {
        match outcome {
            _ if excluded.contains(&name.as_str()) => listing.push_str(&format!("[+]{name} excluded: ok\n")),
            Ok(()) => listing.push_str(&format!("[+]{name} ok\n")),
            Err(reason) => {
                failed = true;
                listing.push_str(&format!("[-]{name} failed: {reason}\n"));
            }
        }
    }
    Ok(if failed {
        text(StatusCode::INTERNAL_SERVER_ERROR, format!("{listing}{endpoint} check failed\n"))
    } else if query.has("verbose") {
        text(StatusCode::OK, format!("{listing}{endpoint} check passed\n"))
    } else {
        text(StatusCode::OK, "ok".to_owned())
    })
}

fn text(status: StatusCode, body: String) -> Response {
    let mut response = Response::new(Body::from(body));
    *response.status_mut() = status;
    response
        .headers_mut()
        .insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    response
}
