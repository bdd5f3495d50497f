package cmdline

import (
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

var compare = cmp.Comparer(func(a, b netip.Addr) bool { return a == b })
var comparePrefix = cmp.Comparer(func(a, b netip.Prefix) bool { return a == b })

func TestParse(t *testing.T) {
	o, err := Parse(`console=ttyS0 ampoule.profile=simulation ampoule.allow=http,tag "ampoule.net=static:10.0.2.15/24,10.0.2.2,10.0.2.3" ampoule.deadline="90s" ampoule.swap=vda initrd=initrd`)
	if err != nil {
		t.Fatal(err)
	}
	want := Options{
		Profile: Simulation, Allow: Allow{"tag": true, "http": true}, Manifest: Source{"vsock", "1024"}, Deadline: 90 * time.Second, Swap: "vda",
		Net: Net{Mode: "static", Addr: netip.MustParsePrefix("10.0.2.15/24"), Gateway: netip.MustParseAddr("10.0.2.2"), DNS: netip.MustParseAddr("10.0.2.3")},
	}
	if d := cmp.Diff(want, o, compare, comparePrefix); d != "" {
		t.Fatal(d)
	}
	again, err := Parse(o.String())
	if d := cmp.Diff(o, again, compare, comparePrefix); d != "" || err != nil {
		t.Fatalf("%v: String does not read back:\n%s", err, d)
	}
}

func TestParseRefuses(t *testing.T) {
	const ok = "ampoule.profile=simulation "
	for name, c := range map[string]struct{ line, want string }{
		"an unknown key":                {ok + "ampoule.debug=1", "ampoule.debug: unknown key"},
		"a repeated key":                {ok + "ampoule.net=none ampoule.net=dhcp", "ampoule.net: is there twice"},
		"a key repeated with one value": {ok + "ampoule.net=none ampoule.net=none", "is there twice"},
		"no profile":                    {"console=ttyS0", "ampoule.profile: is missing"},
		"a profile of no name":          {"ampoule.profile=debug", `"debug" is not a profile`},
		"production with a permission":  {"ampoule.profile=production ampoule.allow=tag", "a production image permits nothing"},
		"a key behind --":               {ok + "-- ampoule.net=none", "ampoule.net: stands behind --"},
		"a key behind a Latin-1 space":  {ok + "x=1\xa0ampoule.x=1", "ampoule.x: unknown key"},
		"a manifest not in base64url":   {ok + `ampoule.manifest="cmdline:a b"`, "want the unpadded base64url"},
		"an empty inline manifest":      {ok + "ampoule.manifest=cmdline:", "want the unpadded base64url"},
		"a gateway of another version":  {ok + "ampoule.net=static:10.0.0.1/8,fe80::1", "another IP version"},
		"a key in another case":         {ok + "Ampoule.net=dhcp", "Ampoule.net: unknown key"},
		"an underscore for the dash":    {ok + "ampoule.manifest_sha384=00", "unknown key"},
		"the bare prefix":               {ok + "ampoule", "ampoule: unknown key"},
		"a key hidden in quotes":        {ok + `"ampoule.x=1 2"`, "ampoule.x: unknown key"},
		"an unknown permission":         {ok + "ampoule.allow=shell", `"shell" is not a permission`},
		"a permission twice":            {ok + "ampoule.allow=tag,tag", "is there twice"},
		"a source of no kind":           {ok + "ampoule.manifest=ftp:x", "not a manifest source"},
		"a port with a sign":            {ok + "ampoule.manifest=vsock:+5", "vsock port"},
		"a short digest":                {ok + "ampoule.manifest-sha384=00ff", "is not a SHA-384"},
		"a network without gateway":     {ok + "ampoule.net=static:10.0.0.1/8", "has 1 parts"},
		"a partition to swap to":        {ok + "ampoule.swap=vda1", "is not a disk to swap to"},
		"a device by its path":          {ok + "ampoule.swap=/dev/vda", "is not a disk to swap to"},
		"a way out of /dev":             {ok + "ampoule.swap=../", "is not a disk to swap to"},
		"a namespace of number 0":       {ok + "ampoule.swap=nvme0n0", "is not a disk to swap to"},
		"no disk at all":                {ok + "ampoule.swap=", "is not a disk to swap to"},
		"a deadline under a second":     {ok + "ampoule.deadline=1ms", "is not a deadline"},
		"a server and no network":       {ok + "ampoule.manifest=cvms:10.0.2.2:7001", "cvms:10.0.2.2:7001 is on the network and ampoule.net is none"},
		"a server and network none":     {ok + "ampoule.net=none ampoule.manifest=cvms:10.0.2.2:7001", "ampoule.net is none; want dhcp or static"},
		"a line that the kernel cuts":   {ok + strings.Repeat("x", maxLine), "the kernel cuts"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := Parse(c.line)
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Fatalf("Parse: %v, want it to say %q", err, c.want)
			}
		})
	}
}

func TestComputationServers(t *testing.T) {
	for _, at := range []string{"10.0.2.2:7001", "[fd00::1]:1", "cvms.example:65535", "localhost:7001", "A-1.example:80", strings.Repeat("a.", 126) + "a:1"} {
		line := "ampoule.profile=simulation ampoule.net=dhcp ampoule.manifest=cvms:" + at
		if o, err := Parse(line); err != nil || o.Manifest != (Source{CVMS, at}) || !strings.Contains(o.String(), "ampoule.manifest=cvms:"+at+" ") {
			t.Errorf("%s: %+v, %v", at, o.Manifest, err)
		}
	}
	for _, at := range []string{
		"", ":", ":7001", "10.0.2.2", "10.0.2.2:", "10.0.2.2:0", "10.0.2.2:07", "10.0.2.2:+7", "10.0.2.2:65536", "10.0.2.2:7001:", "fd00::1:7001", "[fd00::1]", "[fd00:0::1]:7001",
		"[fe80::1%eth0]:7001", "[10.0.2.2]:7001", "http://cvms.example:7001", "cvms.example/x:7001", "user@cvms.example:7001", "cvms..example:7001", "cvms.example.:7001", "-a.example:7001",
		"a_b.example:7001", "é.example:7001", strings.Repeat("a", 64) + ":1", strings.Repeat("a.", 126) + "aa:1",
	} {
		if s, err := ParseSource("cvms:" + at); err == nil || !strings.Contains(err.Error(), "want cvms:HOST:PORT") {
			t.Errorf("cvms:%s: %+v, %v", at, s, err)
		}
	}
}

func TestParseReportsAllProblems(t *testing.T) {
	_, err := Parse("ampoule.profile=x ampoule.net=y ampoule.z=1")
	for _, want := range []string{"ampoule.profile", "ampoule.net", "ampoule.z"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v: says nothing of %s", err, want)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add("ampoule.profile=simulation ampoule.net=dhcp")
	f.Add("ampoule.profile=simulation ampoule.swap=nvme0n1")
	f.Add("ampoule.profile=simulation ampoule.net=dhcp ampoule.manifest=cvms:[fd00::1]:7001")
	f.Add(`a "b c" ampoule.allow="tag" -- x`)
	f.Add("ampoule.profile=simulation ampoule.manifest=cmdline:H4sI ampoule.net=static:10.0.2.15/24,10.0.2.2 ampoule.deadline=1.5s")
	f.Fuzz(func(t *testing.T, line string) {
		o, err := Parse(line)
		if err != nil {
			return
		}
		if again, err := Parse(o.String()); err != nil || again.String() != o.String() {
			t.Fatalf("%q → %q: %v", line, o.String(), err)
		}
	})
}
