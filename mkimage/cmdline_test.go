package mkimage

import (
	"bytes"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/ampoule-vm/ampoule/internal/cmdline"
)

// The line is measured: a change here is a change of every launch measurement.
func TestCmdlineGolden(t *testing.T) {
	const kernel = "console=ttyS0 quiet loglevel=3 init_on_free=1 oops=panic panic=-1 random.trust_bootloader=off mce=off pci=noearly tsc=reliable no-kvmclock no_timer_check "
	for _, c := range []struct {
		name  string
		o     Options
		line  string
		allow []string
	}{
		{"production", Options{Profile: cmdline.Production}, "ampoule.profile=production", []string{}},
		{"simulation", Options{Profile: cmdline.Simulation},
			"tsm_sim.vsock_port=1025 ampoule.profile=simulation ampoule.allow=http,tag,unsealed", []string{"http", "tag", "unsealed"}},
		{"a strict simulation", Options{Profile: cmdline.Simulation, Allow: []string{}},
			"tsm_sim.vsock_port=1025 ampoule.profile=simulation", []string{}},
		{"everything said", Options{Profile: cmdline.Simulation, Allow: []string{"tag", "errors"}, Net: "dhcp", Swap: "vda", ManifestSource: "vsock:2000",
			ManifestSHA384: bytes.Repeat([]byte{0xab}, 48), Deadline: 10 * time.Minute, Extra: " nosmt=force "},
			"tsm_sim.vsock_port=1025 ampoule.profile=simulation ampoule.allow=errors,tag ampoule.manifest=vsock:2000 ampoule.manifest-sha384=" +
				strings.Repeat("ab", 48) + " ampoule.net=dhcp ampoule.swap=vda ampoule.deadline=10m0s nosmt=force", []string{"errors", "tag"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			line, allow, err := c.o.cmdline()
			if err != nil {
				t.Fatal(err)
			}
			if d := cmp.Diff(kernel+c.line, line); d != "" {
				t.Error(d)
			}
			if d := cmp.Diff(c.allow, allow); d != "" {
				t.Error(d)
			}
			parsed, err := cmdline.Parse(line)
			if err != nil || parsed.Profile != c.o.Profile {
				t.Errorf("the guest reads %+v, %v", parsed, err)
			}
		})
	}
}

func TestCmdlineRefuses(t *testing.T) {
	for name, o := range map[string]Options{
		"permissions in production":    {Profile: cmdline.Production, Allow: []string{"tag"}},
		"unknown permission":           {Profile: cmdline.Simulation, Allow: []string{"all"}},
		"permission twice":             {Profile: cmdline.Simulation, Allow: []string{"tag", "tag"}},
		"two permissions in one":       {Profile: cmdline.Simulation, Allow: []string{"tag http"}},
		"unknown network":              {Profile: cmdline.Simulation, Net: "wifi"},
		"unknown disk":                 {Profile: cmdline.Simulation, Swap: "hda"},
		"unknown manifest source":      {Profile: cmdline.Simulation, ManifestSource: "ftp:x"},
		"digest of another size":       {Profile: cmdline.Simulation, ManifestSHA384: make([]byte, 32)},
		"deadline of a nanosecond":     {Profile: cmdline.Simulation, Deadline: 1},
		"own key among the parameters": {Profile: cmdline.Simulation, Extra: "ampoule.net=dhcp"},
		"quoted own key":               {Profile: cmdline.Simulation, Extra: `"ampoule.net=dhcp"`},
		"arguments of init":            {Profile: cmdline.Simulation, Extra: "a=b -- sh"},
		"line break":                   {Profile: cmdline.Simulation, Extra: "a=b\nc"},
		"too long":                     {Profile: cmdline.Simulation, Extra: strings.Repeat("x", 2048)},
	} {
		if line, _, err := o.cmdline(); err == nil {
			t.Errorf("%s: got %q", name, line)
		}
	}
}
