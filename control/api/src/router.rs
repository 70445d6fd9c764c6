//! The one door: every request is identified, parsed, authorized and carried out here.

use std::{sync::Arc, time::Duration};

use axum::{
    Router,
    body::{Body, Bytes},
    extract::State,
    response::{IntoResponse, Response},
    routing::any,
};
use http::{HeaderName, HeaderValue, Method, Request as HttpRequest, StatusCode, header};
use tokio::time::{Instant, timeout_at};

use crate::{
    admission::Admission,
    answer,
    auth::{Attributes, UserInfo, authorize, impersonated, reviews},
    body::{BODY_BYTES_MAX, Content},
    config::ApiConfig,
    discovery,
    encoding::Encoding,
    error::ApiError,
    health,
    heavy::{self, Bounds},
    meter::{self, Asked, UnderWay},
    openapi,
    options::Query,
    path::{self, Target},
    request::{Context, Request},
    sending,
    served::{Served, Serving},
    storage::{Nodes, Storage},
    verbs,
};

const AUDIT_ID: HeaderName = HeaderName::from_static("audit-id");
/// An Audit-ID that a client gives is kept up to this length in bytes.
const AUDIT_ID_LENGTH_MAX: usize = 64;
/// How long a request may take, its body included, where its client does not want to wait for less; kube-apiserver's
/// `--request-timeout`. What goes on after its answer has begun has bounds of its own.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(60);

/// What every request needs.
#[derive(Clone)]
pub struct Api<S, N> {
    pub storage: S,
    pub nodes: N,
    pub config: Arc<ApiConfig>,
    pub bounds: Arc<Bounds>,
    pub serving: Arc<Serving>,
}

/// The whole REST API, for every path. It has no fallback and merges with more specific routes.
pub fn router<S: Storage, N: Nodes>(storage: S, nodes: N, admission: Admission) -> Router {
    let Admission { config, serving } = admission;
    let api = Api { storage, nodes, config, bounds: Arc::default(), serving };
    Router::new().route("/", any(serve::<S, N>)).route("/{*path}", any(serve::<S, N>)).with_state(api)
}

async fn serve<S: Storage, N: Nodes>(State(api): State<Api<S, N>>, request: HttpRequest<Body>) -> Response {
    let began = Instant::now();
    let (mut parts, body) = request.into_parts();
    let encoding = Encoding::take(&mut parts.headers);
    let (method, path) = (parts.method.clone(), parts.uri.path().to_owned());
    let audit_id = audit_id(&parts);
    let served = api.serving.at(&api.storage.view());
    let target = path::parse(&served, &path);
    let under_way = UnderWay::begin(&*api.config.meter, Asked::of(&parts, &target));
    let asked = under_way.asked;
    let mut user = String::new();
    let answer = match context(&api, &parts, (&target, &path), (audit_id.clone(), encoding), began) {
        Ok(context) => {
            user.clone_from(&context.user.name);
            handle(&api, &served, context, parts, body, target, asked).await
        }
        Err(refused) => Err(refused),
    };
    let response = answer.unwrap_or_else(IntoResponse::into_response);
    let mut response = encoding.encode(response, &api.bounds, &user).await;
    if method == Method::POST && response.status() == StatusCode::GATEWAY_TIMEOUT {
        // It may have been done. Clients send again what they are told a time for: another object would be made.
        response.headers_mut().remove(header::RETRY_AFTER);
    }
    under_way.meter.answered(under_way.asked, response.status().as_u16(), began.elapsed());
    drop(under_way);
    tracing::debug!(%method, path, status = response.status().as_u16(), audit_id = ?audit_id, "request");
    let headers = response.headers_mut();
    headers.insert(AUDIT_ID, audit_id);
    headers.entry(header::CACHE_CONTROL).or_insert(HeaderValue::from_static("no-cache, private"));
    response
}

/// That which the client gives, where it is short enough, or a new one.
fn audit_id(parts: &http::request::Parts) -> HeaderValue {
    let given = parts.headers.get(AUDIT_ID).filter(|id| id.len() <= AUDIT_ID_LENGTH_MAX);
    let new = || HeaderValue::from_str(&uuid::Uuid::new_v4().to_string()).ok();
    given.cloned().or_else(new).unwrap_or(HeaderValue::from_static(""))
}

/// Who asks, once it is clear that they may.
fn context<S: Storage, N: Nodes>(
    api: &Api<S, N>,
    parts: &http::request::Parts,
    (target, path): (&Target, &str),
    (audit_id, encoding): (HeaderValue, Encoding),
    began: Instant,
) -> Result<Context, ApiError> {
    let authorizer = &*api.config.authorizer;
    let user = parts.extensions.get::<UserInfo>().cloned().unwrap_or_else(UserInfo::anonymous).completed();
    let user = impersonated(authorizer, user, &parts.headers)?;
    authorize(authorizer, &user, &Attributes::of(&parts.method, target, path, meter::watches(parts)))?;
    let asked = Query::parse(&parts.uri)?.duration("timeout")?.filter(|asked| !asked.is_zero());
    let deadline = began + asked.map_or(REQUEST_TIMEOUT, |asked| asked.min(REQUEST_TIMEOUT));
    Ok(Context { user, audit_id, deadline, encoding })
}

/// Reads a path once more that names nothing here: a definition may be newer than what this member knows.
async fn resolve_anew<S: Storage, N: Nodes>(
    api: &Api<S, N>,
    context: &Context,
    parts: &http::request::Parts,
) -> Result<(Arc<Served>, Target), ApiError> {
    let path = parts.uri.path();
    if !path.starts_with("/apis/") {
        return Err(path::not_served(&api.serving.at(&api.storage.view()), path));
    }
    let newest = timeout_at(context.deadline, api.storage.linearizable()).await;
    let newest = newest.map_err(|_| ApiError::late(false))??;
    let served = api.serving.at(&newest);
    let target = path::parse(&served, path);
    if matches!(target, Target::Unknown) {
        return Err(path::not_served(&served, path));
    }
    let asked = Attributes::of(&parts.method, &target, path, meter::watches(parts));
    authorize(&*api.config.authorizer, &context.user, &asked)?;
    Ok((served, target))
}

async fn handle<S: Storage, N: Nodes>(
    api: &Api<S, N>,
    served: &Served,
    context: Context,
    parts: http::request::Parts,
    body: Body,
    target: Target,
    asked: Asked,
) -> Result<Response, ApiError> {
    tracing::debug!(user = context.user.name, audit_id = ?context.audit_id, "authorized");
    if let Target::Resource(path) = &target {
        context.encoding.check(path)?;
    }
    let query = Query::parse(&parts.uri)?;
    let reading = matches!(parts.method, Method::GET | Method::HEAD);
    match target {
        Target::Resource(path) => {
            let request = Request {
                context,
                method: parts.method,
                path,
                query,
                headers: parts.headers,
                body: Bytes::new(),
            };
            // What goes on has no turn: it would keep it for hours.
            if asked.is_long_running() {
                return verbs::dispatch(api, &request).await;
            }
            let turn = api.bounds.enter(&request.context.user.name, !reading).await?;
            let Context { deadline, encoding, .. } = request.context;
            let user = request.context.user.name.clone();
            let body = if reading { Bytes::new() } else { read(body, deadline).await? };
            let answer = match timeout_at(deadline, carry_out(api, Request { body, ..request })).await {
                Ok(answer) => answer,
                Err(_) => Err(ApiError::late(!reading)),
            };
            // A refusal may be large as well.
            let answer = answer.unwrap_or_else(IntoResponse::into_response);
            Ok(sending::until_sent(encoding.encode(answer, &api.bounds, &user).await, turn))
        }
        Target::Review(review) => {
            let _turn = api.bounds.enter(&context.user.name, false).await?;
            let body = read(body, context.deadline).await?;
            let content = Content { headers: &parts.headers, body: &body };
            reviews::answer(review, &parts.method, content, &context.user, &api.config)
        }
        Target::Unknown => {
            let (served, target) = resolve_anew(api, &context, &parts).await?;
            let asked = Asked::of(&parts, &target);
            Box::pin(handle(api, &served, context, parts, body, target, asked)).await
        }
        _ if !reading => Err(ApiError::MethodNotAllowed),
        Target::Root => Ok(root(served)),
        Target::CoreVersions => discovery::root(served, true, &parts.headers, host(&parts)),
        Target::Groups => discovery::root(served, false, &parts.headers, host(&parts)),
        Target::Group(group) => Ok(discovery::group(served, &group)),
        Target::GroupVersion { group, version } => Ok(discovery::group_version(served, &group, &version)),
        Target::OpenApiV2 => openapi::index_v2(served, &parts.headers),
        Target::OpenApiIndex => Ok(openapi::index(served, &parts.headers)),
        Target::OpenApiDocument(path) => openapi::document(served, &path, &query, &parts.headers),
        Target::Version => Ok(health::version(&api.config)),
        Target::Health { endpoint, check } => health::check(api, endpoint, check.as_deref(), &query).await,
    }
}

/// Carries out a request here, or where it is in nobody's way.
async fn carry_out<S: Storage, N: Nodes>(api: &Api<S, N>, request: Request) -> Result<Response, ApiError> {
    if !heavy::is_heavy(&request, &api.storage) {
        return verbs::dispatch(api, &request).await;
    }
    let (own, user) = (api.clone(), request.context.user.name.clone());
    api.bounds.carry_out(&user, move || async move { verbs::dispatch(&own, &request).await }).await
}

async fn read(body: Body, deadline: Instant) -> Result<Bytes, ApiError> {
    let whole = timeout_at(deadline, axum::body::to_bytes(body, BODY_BYTES_MAX));
    match whole.await {
        Ok(Ok(bytes)) => Ok(bytes),
        Ok(Err(error)) => {
            let source = std::error::Error::source(&error);
            if source.is_some_and(|source| source.is::<http_body_util::LengthLimitError>()) {
                return Err(ApiError::TooLarge { limit: BODY_BYTES_MAX as u64 });
            }
            Err(ApiError::BadRequest(format!("the body of the request cannot be read: {error}")))
        }
        Err(_) => Err(ApiError::BadRequest("the body of the request did not arrive in time".to_owned())),
    }
}

fn host(parts: &http::request::Parts) -> &str {
    let header = parts.headers.get(header::HOST).and_then(|value| value.to_str().ok());
    header.or(parts.uri.authority().map(|authority| authority.as_str())).unwrap_or("")
}

fn root(served: &Served) -> Response {
    let mut paths = vec!["/api".to_owned(), "/apis".to_owned()];
    for (group, version) in served.groups.group_versions() {
        paths.push(if group.is_empty() {
            format!("/api/{version}")
        } else {
            format!("/apis/{group}/{version}")
        });
    }
    paths.extend(["/healthz", "/livez", "/openapi/v3", "/readyz", "/version"].map(str::to_owned));
    paths.sort();
    answer::json_value(StatusCode::OK, &serde_json::json!({ "paths": paths }))
}
