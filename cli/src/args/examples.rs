//! The examples at the end of each command's help. A test parses every line of them.

pub const CORACLE: &str = "Examples:
  coracle run hello.wasm
  coracle up
  coracle deploy hello.wasm
  coracle get all";

pub const UP: &str = "Examples:
  coracle up
  coracle up --control 3 --nodes 2 --data-dir /var/lib/coracle
  coracle up --listen :6443 --gateway :8080";

pub const NEW: &str = "Examples:
  coracle new hello --lang rust
  coracle new hello --lang python";

pub const BUILD: &str = "Examples:
  coracle build
  coracle build hello --test";

pub const DEV: &str = "Examples:
  coracle dev
  coracle dev hello --port 3000 --env GREETING=hi";

pub const INVOKE: &str = "Examples:
  coracle invoke hello
  coracle invoke hello --path /greet?name=Ada --timing
  coracle invoke hello --data @order.json --header Content-Type:application/json --include
  coracle invoke hello --times 1000 --timing -o json";

pub const RUN: &str = "Examples:
  coracle run hello.wasm
  coracle run --port 0.0.0.0:80 --env GREETING=hi hello.wasm
  coracle run --dir . --net count.wasm --words notes.txt
  coracle run --port 9000:7 tcp-echo.wasm
  # A project, which is built before:
  coracle run .";

pub const DEMO: &str = "Examples:
  coracle demo
  coracle demo --keep";

pub const CONTROL: &str = "Examples:
  # The first control node of a new cluster:
  coracle control --data-dir /var/lib/coracle --listen 10.0.0.1:6443 --init
  # A further one, with a token of `coracle token create --role control`:
  coracle control --data-dir /var/lib/coracle --listen 10.0.0.2:6443 --join 10.0.0.1:6443 --token-file token";

pub const NODE: &str = "Examples:
  coracle node --data-dir /var/lib/coracle --fabric :7443 --gateway :8080 --join 10.0.0.1:6443 --token-file token
  # Once it has joined:
  coracle node --data-dir /var/lib/coracle --fabric :7443 --gateway :8080";

pub const TOKEN: &str = "Examples:
  coracle token create --role control --ttl 1h
  coracle token list
  coracle token revoke 0a1b2c3d4e";

pub const TOKEN_CREATE: &str = "Examples:
  coracle token create --role control --ttl 1h --token-file token
  coracle token create --node n1
  coracle token create --role reader --ttl 365d";

pub const TOKEN_LIST: &str = "Examples:
  coracle token list
  coracle token list -o json";

pub const TOKEN_REVOKE: &str = "Examples:
  coracle token revoke 0a1b2c3d4e";

pub const CLUSTER: &str = "Examples:
  coracle cluster status
  coracle cluster members -o json
  coracle cluster replace c1 c4";

pub const CLUSTER_STATUS: &str = "Examples:
  coracle cluster status
  coracle cluster status -o yaml";

pub const CLUSTER_MEMBERS: &str = "Examples:
  coracle cluster members
  coracle cluster members -o json";

pub const CLUSTER_PROMOTE: &str = "Examples:
  coracle cluster promote c4 c5";

pub const CLUSTER_REMOVE: &str = "Examples:
  # From five to three, in one change:
  coracle cluster remove c4 c5
  # To one, which no failure may meet any more:
  coracle cluster remove c2 c3 --force";

pub const CLUSTER_REPLACE: &str = "Examples:
  coracle cluster replace c1 c4";

pub const CLUSTER_TRANSFER: &str = "Examples:
  coracle cluster transfer-leader c2";

pub const KEYS: &str = "Examples:
  coracle cluster keys
  coracle cluster keys -o json";

pub const ROTATE_KEYS: &str = "Examples:
  coracle cluster rotate-keys
  coracle cluster rotate-keys --no-wait";

pub const CA: &str = "Examples:
  coracle cluster ca
  coracle cluster ca -o yaml";

pub const ROTATE_CA: &str = "Examples:
  coracle cluster rotate-ca --all --grace 24h
  coracle cluster rotate-ca --serving --no-wait";

pub const DROP_KEY: &str = "Examples:
  coracle cluster drop-key 5f1c2ab09d3e4f60";

pub const SNAPSHOT: &str = "Examples:
  coracle snapshot save backup.snap
  coracle snapshot inspect backup.snap
  coracle snapshot restore backup.snap --data-dir c1 --key-ring secrets.ring";

pub const SNAPSHOT_SAVE: &str = "Examples:
  coracle snapshot save backup.snap
  coracle snapshot save backup.snap --force";

pub const SNAPSHOT_INSPECT: &str = "Examples:
  coracle snapshot inspect backup.snap
  coracle snapshot inspect backup.snap -o json";

pub const SNAPSHOT_RESTORE: &str = "Examples:
  coracle snapshot restore backup.snap --data-dir c1 --key-ring secrets.ring
  coracle snapshot restore backup.snap --data-dir c1 --drop-secrets";

pub const RECOVER: &str = "Examples:
  # Says how long its log is, and does nothing:
  coracle recover --data-dir c1
  coracle recover --data-dir c1 --force-new-cluster";

pub const KUBECONFIG: &str = "Examples:
  coracle kubeconfig
  coracle kubeconfig --data-dir c1";

pub const PUSH: &str = "Examples:
  coracle push hello.wasm hello:1.0
  coracle push hello.wasm team/hello";

pub const DEPLOY: &str = "Examples:
  coracle deploy hello.wasm
  coracle deploy hello:1.0 --name greet --replicas 3 --env GREETING=hi
  # With instances while it is called, and none when it is not:
  coracle deploy hello.wasm --function
  coracle deploy hello.wasm --env-file .env --env-from configmap/texts --secret PASSWORD=sesame
  coracle deploy server.wasm --port 7000 -- --verbose";

pub const FUNCTIONS: &str = "Examples:
  coracle functions
  coracle functions -A -o wide";

pub const REVISIONS: &str = "Examples:
  coracle revisions hello";

pub const TRAFFIC: &str = "Examples:
  # What is so now:
  coracle traffic hello
  coracle traffic hello hello-3=10 hello-2=90
  coracle traffic hello latest=100 --tag old=hello-2";

pub const ROLLBACK: &str = "Examples:
  coracle rollback hello
  coracle rollback hello --to hello-2";

pub const GET: &str = "Examples:
  coracle get pods
  coracle get deploy,svc -A
  coracle get all -l app=hello
  coracle get pod/hello-0 svc/hello -o yaml
  coracle get pods -o name
  coracle get -f app.yaml";

pub const LOGS: &str = "Examples:
  coracle logs hello
  coracle logs -f deploy/hello --all-pods
  coracle logs pod/hello-0 -c web --previous --tail 20
  coracle logs -l app=hello --since 10m";

pub const DELETE: &str = "Examples:
  # What `coracle deploy` made under this name:
  coracle delete hello
  coracle delete pod/a svc/b
  coracle delete deploy,svc hello
  coracle delete pods --all
  coracle delete all -l app=hello
  coracle delete -f app.yaml";

pub const DOCTOR: &str = "Examples:
  coracle doctor
  coracle doctor --kubeconfig c1/kubeconfig -o json
  coracle doctor --data-dir /var/lib/coracle/node";

pub const VERSION: &str = "Examples:
  coracle version
  coracle version --client -o json";

pub const COMPLETIONS: &str = "Examples:
  coracle completions bash
  # In ~/.bashrc: source <(coracle completions bash)";

pub const MAN: &str = "Examples:
  coracle man
  coracle man token create
  coracle man --prefix /usr/local";
