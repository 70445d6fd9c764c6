//! Services and Ingresses.

use super::{Rule, Table, refused, served, warned};

const NO_BALANCER: &str = "no load balancer is made: leave the field out";

pub static SERVICE: Table = Table {
    title: "Service",
    schema: "io.k8s.api.core.v1.ServiceSpec",
    base: r#"{"ports":[{"port":80}]}"#,
    rules: SERVICE_RULES,
    parts: &[],
};

const SERVICE_RULES: &[Rule] = &[
    served(
        "allocateLoadBalancerNodePorts",
        r#"^{"type":"LoadBalancer","loadBalancerClass":"example.com/a","allocateLoadBalancerNodePorts":false}"#,
    )
    .only(&["false", "true"]),
    served("clusterIP", r#""None""#),
    served("clusterIPs", r#"^{"clusterIP":"None","clusterIPs":["None"]}"#),
    refused(
        "externalIPs",
        r#"["192.0.2.1"]"#,
        "service addresses exist only in the cluster's virtual network: reach the service from outside by a NodePort or \
         an Ingress",
    ),
    served("externalName", r#"^{"type":"ExternalName","externalName":"a.example","ports":null}"#),
    served("externalTrafficPolicy", r#"^{"type":"NodePort","externalTrafficPolicy":"Cluster"}"#),
    warned(
        "externalTrafficPolicy",
        r#"^{"type":"NodePort","externalTrafficPolicy":"Local"}"#,
        "has no effect: traffic goes to the endpoints of all nodes, and keeps its client's address",
    )
    .only(&["Local"]),
    refused(
        "healthCheckNodePort",
        r#"^{"type":"LoadBalancer","externalTrafficPolicy":"Local","healthCheckNodePort":30999}"#,
        "nothing listens there: leave the field out",
    )
    .all_but(&["0"]),
    served("internalTrafficPolicy", r#""Cluster""#),
    refused(
        "internalTrafficPolicy",
        r#""Local""#,
        "traffic goes to the endpoints of all nodes: say Cluster, or leave the field out",
    )
    .only(&["Local"]),
    served("ipFamilies", r#"["IPv4"]"#),
    served("ipFamilyPolicy", r#""SingleStack""#)
        .note("`RequireDualStack` is refused: there are addresses of IPv4 alone"),
    warned(
        "ipFamilyPolicy",
        r#""PreferDualStack""#,
        "has no effect: there are addresses of IPv4 alone, as under SingleStack",
    )
    .only(&["PreferDualStack"]),
    served("loadBalancerClass", r#"^{"type":"LoadBalancer","loadBalancerClass":"example.com/a"}"#)
        .note("the service is left to whoever serves the class"),
    refused("loadBalancerIP", r#"^{"type":"LoadBalancer","loadBalancerIP":"192.0.2.1"}"#, NO_BALANCER),
    refused(
        "loadBalancerSourceRanges",
        r#"^{"type":"LoadBalancer","loadBalancerSourceRanges":["192.0.2.0/24"]}"#,
        "node ports take clients of every address: leave the field out, and have a firewall before the nodes",
    ),
    served("ports[].appProtocol", r#"^{"ports":[{"port":80,"appProtocol":"http"}]}"#)
        .note("told to readers of its EndpointSlices"),
    served("ports[].name", r#"^{"ports":[{"port":80,"name":"a"}]}"#),
    served("ports[].nodePort", r#"^{"type":"NodePort","ports":[{"port":80,"nodePort":30998}]}"#),
    served("ports[].port", r#"^{"ports":[{"port":81}]}"#),
    served("ports[].protocol", r#"^{"ports":[{"port":80,"protocol":"UDP"}]}"#)
        .note("node ports of UDP are not served yet, of which a warning tells"),
    refused(
        "ports[].protocol",
        r#"^{"ports":[{"port":80,"protocol":"SCTP"}]}"#,
        "components have no SCTP sockets: say TCP or UDP",
    )
    .only(&["SCTP"]),
    served("ports[].targetPort", r#"^{"ports":[{"port":80,"targetPort":"a"}]}"#),
    served("publishNotReadyAddresses", "true"),
    served("selector", r#"{"a":"b"}"#),
    served("sessionAffinity", r#""ClientIP""#),
    served(
        "sessionAffinityConfig",
        r#"^{"sessionAffinity":"ClientIP","sessionAffinityConfig":{"clientIP":{"timeoutSeconds":60}}}"#,
    ),
    warned(
        "trafficDistribution",
        r#""PreferClose""#,
        "has no effect: the endpoints of all nodes take their turns",
    ),
    served("type", r#""NodePort""#),
    warned(
        "type",
        r#""LoadBalancer""#,
        "no load balancer is made: the service is reached by its node ports",
    )
    .only(&["LoadBalancer"]),
];

pub static INGRESS: Table = Table {
    title: "Ingress",
    schema: "io.k8s.api.networking.v1.IngressSpec",
    base: r#"{"rules":[{"host":"a.fields.example","http":{"paths":[{"path":"/","pathType":"Prefix","backend":{"service":{"name":"a","port":{"number":80}}}}]}}]}"#,
    rules: INGRESS_RULES,
    parts: &[],
};

const ONLY_SERVICES: &str = "only services can be backends: name one in `service`";

const INGRESS_RULES: &[Rule] = &[
    refused("defaultBackend.resource", r#"{"apiGroup":"example.com","kind":"A","name":"a"}"#, ONLY_SERVICES),
    served("defaultBackend.service", r#"{"name":"a","port":{"name":"http"}}"#),
    served("ingressClassName", r#""coracle""#)
        .note("an Ingress of another class is left to whoever serves that"),
    served("rules[].host", "^{}"),
    refused(
        "rules[].http.paths[].backend.resource",
        r#"^{"rules":[{"host":"b.fields.example","http":{"paths":[{"path":"/","pathType":"Prefix","backend":{"resource":{"kind":"A","name":"a"}}}]}}]}"#,
        ONLY_SERVICES,
    ),
    served("rules[].http.paths[].backend.service", "^{}"),
    served("rules[].http.paths[].path", "^{}"),
    served("rules[].http.paths[].pathType", "^{}"),
    warned(
        "tls",
        r#"[{"hosts":["a.fields.example"],"secretName":"a"}]"#,
        "is not served yet: the gateway answers these hosts by plain HTTP alone, without the certificate",
    ),
];
