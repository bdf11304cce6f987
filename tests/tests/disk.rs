use siskin_tests::{agent::Agent, disk::{Done, LoopDevice}};
#[test]
fn probe() {
    let agent = Agent::start(&[]);
    let d = LoopDevice::new(4 << 20);
    let step = |name: &str, f: &dyn Fn()| {
        let (b, kb) = (agent.scrape(), Done::by_kernel(&d.name));
        f();
        std::thread::sleep(std::time::Duration::from_millis(50));
        let (a, ka) = (agent.scrape(), Done::by_kernel(&d.name));
        println!("== {name}\n kernel {:?}\n ours   {:?}", ka - kb, Done::seen(&a, &d.name) - Done::seen(&b, &d.name));
        for op in ["read","write","flush","discard","other"] {
            let l = [("device", d.name.as_str()), ("op", op)];
            let dd = |n: &str| a.sum(n, &l) - b.sum(n, &l);
            println!("  {op}: count {} dev {} sum {} devsum {} err {}", dd("siskin_disk_io_seconds_count"), dd("siskin_disk_device_seconds_count"), dd("siskin_disk_io_seconds_sum"), dd("siskin_disk_device_seconds_sum"), dd("siskin_disk_errors_total"));
        }
    };
    println!("{}", d.name);
    step("write 10x4k", &|| for i in 0..10 { d.write(i * 4096, 4096).unwrap() });
    step("write 10x128k", &|| for i in 0..10 { d.write(i * 131072, 131072).unwrap() });
    step("read 10x512", &|| for i in 0..10 { d.read(i * 4096, 512).unwrap() });
    step("flush 5", &|| for _ in 0..5 { d.flush() });
    step("write_through 5", &|| for i in 0..5 { d.write_through(i * 4096, 4096).unwrap() });
    step("discard 3x64k", &|| for i in 0..3 { d.discard(i * 65536, 65536) });
    step("zeroes 3x64k", &|| for i in 0..3 { d.write_zeroes(i * 65536, 65536) });
    d.cut_off(1 << 20);
    step("write err 4", &|| for i in 0..4 { println!("{:?}", d.write((2 << 20) + i * 4096, 4096)) });
    step("write through err 4", &|| for i in 0..4 { println!("{:?}", d.write_through((2 << 20) + i * 4096, 4096)) });
    step("read err 4", &|| for i in 0..4 { println!("{:?}", d.read((2 << 20) + i * 4096, 4096)) });
    step("read part err 4", &|| for i in 0..4 { println!("{:?}", d.read((1 << 20) - 4096 * (i + 1), 65536)) });
    println!("{}", agent.scrape().text.lines().filter(|l| l.contains("probe=\"disk\"") || l.contains("disk_bytes")).collect::<Vec<_>>().join("\n"));
}
