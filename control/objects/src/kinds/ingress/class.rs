//! Whose an Ingress is. Gateways serve those that name no class, or a class of theirs; the others are another controller's.

use serde_json::Value;

use crate::{fields::text, name::ObjectKey, object::Object, view::View};

pub const INGRESSES: &str = "ingresses.networking.k8s.io";
pub const INGRESS_CLASSES: &str = "ingressclasses.networking.k8s.io";

/// Who serves the gateways' classes, as their `spec.controller` says.
pub const GATEWAY_CONTROLLER: &str = "coracle.dev/gateway";

/// The class that an Ingress names: in its field, or in the annotation that there was before.
pub fn ingress_class(ingress: &Value) -> Option<&str> {
    let places = ["/spec/ingressClassName", "/metadata/annotations/kubernetes.io~1ingress.class"];
    places.into_iter().map(|place| text(ingress, place)).find(|class| !class.is_empty())
}

/// Whether Ingresses of a class are for gateways.
pub fn is_gateway_class(class: &Object) -> bool {
    class.parse().is_ok_and(|class: Value| text(&class, "/spec/controller") == GATEWAY_CONTROLLER)
}

/// Whether gateways serve an Ingress, by the classes that there are.
pub fn is_for_gateways(view: &View, ingress: &Value) -> bool {
    let Some(class) = ingress_class(ingress) else { return true };
    view.get(&ObjectKey::new(INGRESS_CLASSES, "", class)).is_some_and(|class| is_gateway_class(class))
}
