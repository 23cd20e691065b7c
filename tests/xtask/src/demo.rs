//! `cargo xtask demo`: from nothing to three real systemd nodes whose pods reach each other, and the proof.

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::process::ExitCode;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use homelab_lab::{Lab, LabOptions, Output};

use crate::{Outcome, dist, tools};

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Name of the lab
    #[arg(long, default_value = "demo")]
    pub(crate) name: String,
    /// Take the lab down at the end
    #[arg(long)]
    pub(crate) down: bool,
}

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

/// Where the image's web server listens.
const PORT: u16 = 8080;
/// Name of the container on every node.
const POD: &str = "demo";
/// Address of the service.
const SERVICE: &str = "192.168.50.200";
const CONFIG: &str = "examples/homeserver/homelab.yaml";

pub(crate) fn run(args: Args) -> Outcome {
    let start = Instant::now();
    let say = |words: &str| println!("\n== {words} ({:.0} s)", start.elapsed().as_secs_f64());
    say("build homelab and the node binary");
    tools::ensure_build_packages()?;
    // All of the workspace, as for the tests: else cargo builds dependencies again with other features.
    let programs = ["--bin=homelab", "--bin=homelab-lab-supervisor"];
    tools::run(tools::cargo(&["build", "--workspace"]).args(programs))?;
    dist::build_here(&tools::root().join("target/debug"))?;
    say("boot three Debian nodes, a router and a client on a LAN of their own");
    let lab = Lab::up(LabOptions::new(&args.name));
    let passed = match &lab {
        Ok(lab) => show(lab, &say),
        Err(error) => Err(error.to_string().into()),
    };
    if args.down {
        // Also what is left of a lab that did not come up.
        Lab::down_name(&args.name)?;
        println!("\nthe lab is down");
    } else {
        let lab = format!("cargo xtask lab --name {}", args.name);
        println!("\nThe lab is still up. To look around:");
        println!("  {lab} homelab -- -f {CONFIG} status");
        println!("  {lab} ssh node1");
        println!("  {lab} exec node1 -- ip route");
        println!("To end it:\n  {lab} down");
    }
    if passed? {
        println!("\ndemo passed in {:.0} s", start.elapsed().as_secs_f64());
        return Ok(ExitCode::SUCCESS);
    }
    Err("the demo failed, see above".into())
}

/// Everything that happens on the lab; false if packets were lost or the last plan was not empty.
fn show(lab: &Lab, say: &dyn Fn(&str)) -> Result<bool> {
    let config = tools::root().join(CONFIG).to_string_lossy().into_owned();
    let homelab = |arguments: &[&str]| -> Result<i32> {
        println!("$ homelab -f {CONFIG} {}", arguments.join(" ").replace(&service_file(lab), "web.yaml"));
        let all = [&["-f", config.as_str()], arguments].concat();
        Ok(lab.homelab_command(&all)?.status()?.code().unwrap_or(-1))
    };
    say("what would change");
    if homelab(&["plan"])? != 0 {
        return Ok(false);
    }
    say("make it so");
    if homelab(&["apply", "--yes"])? != 0 {
        return Ok(false);
    }
    say("start a pod on every node, through containerd and the CNI plugin");
    let nodes: Vec<String> = lab.status()?.nodes.into_iter().map(|node| node.name).collect();
    let pods = start_pods(lab, &nodes)?;
    say("who reaches whom: time of a ping, and a page over TCP");
    let connected = matrix(lab, &nodes, &pods)?;
    say("a service of these pods, with an address on the LAN");
    let service = service_file(lab);
    let text = service_text(&nodes);
    std::fs::write(&service, &text)?;
    println!("# web.yaml\n{text}");
    let with = ["-f", service.as_str()];
    if homelab(&[&with[..], &["apply", "--yes"]].concat())? != 0 {
        return Ok(false);
    }
    let reached = from_the_lan(lab, nodes.len())?;
    if homelab(&[&with[..], &["status", "lb"]].concat())? != 0 {
        return Ok(false);
    }
    say("nothing is left to change");
    let empty = homelab(&[&with[..], &["plan", "--detailed-exitcode"]].concat())? == 0;
    Ok(connected && reached && empty)
}

fn service_file(lab: &Lab) -> String {
    lab.dir().join("web.yaml").to_string_lossy().into_owned()
}

fn service_text(nodes: &[String]) -> String {
    let endpoints: String =
        nodes.iter().map(|node| format!("      - {{node: {node}, container: {POD}}}\n")).collect();
    format!(
        "services:\n  - name: web\n    type: LoadBalancer\n    loadBalancerIP: {SERVICE}\n    ports: [{{port: 80, targetPort: \
         {PORT}}}]\n    endpoints:\n{endpoints}"
    )
}

/// The LAN's client fetches the page from the service's address, again and again; true if it came each time once the address
/// was announced.
fn from_the_lan(lab: &Lab, pods: usize) -> Result<bool> {
    let url = format!("http://{SERVICE}/index.html");
    let fetch =
        || lab.exec("client", &["curl", "-s", "-f", "-m", "2", &url]).is_ok_and(|output| output.success());
    let start = Instant::now();
    while !fetch() {
        if start.elapsed() > Duration::from_secs(30) {
            println!("the LAN client does not reach {url}");
            return Ok(false);
        }
    }
    let first = start.elapsed();
    // So many that every pod has its turn, all but certainly.
    let tries = 10 * pods;
    let came = (0..tries).filter(|_| fetch()).count();
    println!(
        "the LAN client had {url} after {} ms, and {came} times of {tries} afterwards",
        first.as_millis()
    );
    Ok(came == tries)
}

/// Starts a container on every node and gives the pods' addresses.
fn start_pods(lab: &Lab, nodes: &[String]) -> Result<Vec<IpAddr>> {
    let mut pods = Vec::new();
    std::thread::scope(|scope| {
        let jobs: Vec<_> = nodes.iter().map(|node| scope.spawn(move || start_pod(lab, node))).collect();
        for (job, node) in jobs.into_iter().zip(nodes) {
            let pod = job.join().map_err(|_| format!("{node}: starting the pod panicked"))?;
            let (address, elapsed) = pod.map_err(|error| format!("{node}: {error}"))?;
            println!("{node}: pod {address} after {} ms", elapsed.as_millis());
            pods.push(address);
        }
        Ok(pods)
    })
}

fn start_pod(lab: &Lab, node: &str) -> std::result::Result<(IpAddr, Duration), String> {
    let image = lab.containerd(node).map_err(|error| error.to_string())?;
    let start = Instant::now();
    let started = lab.exec(node, &["ctr", "run", "--detach", "--cni", image, POD]);
    started.and_then(Output::ok).map_err(|error| error.to_string())?;
    let elapsed = start.elapsed();
    let words = run_on(lab, node, true, &["ip", "-4", "-o", "address", "show", "dev", "eth0"])?.stdout;
    let mut after = words.split_whitespace().skip_while(|word| *word != "inet").skip(1);
    let address = after.next().and_then(|word| word.split('/').next()?.parse().ok());
    Ok((address.ok_or_else(|| format!("the pod has no IPv4 address: {words}"))?, elapsed))
}

/// Runs a program on a node, or inside its pod.
fn run_on(lab: &Lab, node: &str, in_pod: bool, program: &[&str]) -> std::result::Result<Output, String> {
    // containerd wants a name for every process.
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let id = format!("demo-{}", COUNT.fetch_add(1, Ordering::Relaxed));
    let exec = ["ctr", "task", "exec", "--exec-id", &id, POD];
    let all = if in_pod { [&exec, program].concat() } else { program.to_vec() };
    lab.exec(node, &all).map_err(|error| error.to_string())
}

/// Prints the matrix; true if every packet arrived and came out with the right address.
fn matrix(lab: &Lab, nodes: &[String], pods: &[IpAddr]) -> Result<bool> {
    // The web server of the LAN's client says whom it sees.
    let client = lab.within("client", || TcpListener::bind(("0.0.0.0", PORT)))??;
    std::thread::spawn(move || serve(&client));
    let client: IpAddr = "192.168.50.100".parse()?;
    let mut targets: Vec<(String, IpAddr)> =
        nodes.iter().zip(pods).map(|(node, pod)| (format!("pod on {node}"), *pod)).collect();
    targets.push(("LAN client".to_owned(), client));

    print!("{:<14}", "");
    targets.iter().for_each(|(name, _)| print!("{name:<16}"));
    print!("\n{:<14}", "");
    targets.iter().for_each(|(_, address)| print!("{:<16}", address.to_string()));
    println!();
    let mut passed = true;
    for from_pod in [true, false] {
        for node in nodes {
            print!("{:<14}", if from_pod { format!("pod on {node}") } else { node.clone() });
            for (_, address) in &targets {
                let cell = probe(lab, node, from_pod, *address);
                passed &= cell.is_ok();
                print!("{:<16}", cell.unwrap_or_else(|error| error));
                std::io::stdout().flush()?;
            }
            println!();
        }
    }
    for node in nodes {
        let page = fetch(lab, node, true, client).unwrap_or_default();
        let own = lab.status()?.nodes.into_iter().find(|status| status.name == *node);
        let masqueraded = own.is_some_and(|status| page.trim() == status.address.to_string());
        passed &= masqueraded;
        println!(
            "the client sees the pod on {node} as {}",
            if page.is_empty() { "nobody" } else { page.trim() }
        );
    }
    Ok(passed)
}

/// Time of a ping and the word of a fetched page, or what failed.
fn probe(lab: &Lab, node: &str, from_pod: bool, to: IpAddr) -> std::result::Result<String, String> {
    let output = run_on(lab, node, from_pod, &["ping", "-c", "1", "-W", "2", &to.to_string()])?;
    let time = output.stdout.split("time=").nth(1).and_then(|rest| rest.split_whitespace().next());
    let Some(time) = time.filter(|_| output.success()) else { return Err("NO PING".to_owned()) };
    match fetch(lab, node, from_pod, to) {
        Some(_) => Ok(format!("{time} ms, tcp")),
        None => Err("NO TCP".to_owned()),
    }
}

/// The page that `to` serves, fetched by a node or its pod.
fn fetch(lab: &Lab, node: &str, from_pod: bool, to: IpAddr) -> Option<String> {
    // The image's busybox is static, and its wget crashes for want of glibc's name service.
    let request = format!(r"printf 'GET /index.html HTTP/1.0\r\n\r\n' | nc -w 2 {to} {PORT}");
    let url = format!("http://{to}:{PORT}/index.html");
    let program: &[&str] =
        if from_pod { &["sh", "-c", &request] } else { &["curl", "-s", "-i", "-f", "-m", "2", &url] };
    let output = run_on(lab, node, from_pod, program).ok()?;
    let (head, body) = output.stdout.split_once("\r\n\r\n")?;
    (output.success() && head.contains(" 200 ")).then(|| body.to_owned())
}

/// Answers every request with the caller's address.
fn serve(listener: &TcpListener) {
    for stream in listener.incoming() {
        let Ok(mut stream) = stream else { continue };
        let caller = stream.peer_addr().map(|peer: SocketAddr| peer.ip().to_string()).unwrap_or_default();
        // The request fits into one packet; its content does not matter.
        let _ = stream.set_read_timeout(Some(Duration::from_secs(2)));
        let _ = stream.read(&mut [0; 4096]);
        let answer = format!("HTTP/1.0 200 OK\r\nContent-Length: {}\r\n\r\n{caller}\n", caller.len() + 1);
        let _ = stream.write_all(answer.as_bytes());
    }
}
