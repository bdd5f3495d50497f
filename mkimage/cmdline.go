package mkimage

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/ampoule-vm/ampoule/internal/cmdline"
)

// SimulatedPSPPort is the vsock port of the host at which the simulation kernel has its reports signed.
const SimulatedPSPPort = 1025

// parameters are the kernel's, for every profile and every place an image boots at.
var parameters = []string{
	"console=ttyS0",
	"quiet", "loglevel=3", // a panic still shows; the rest would only slow the serial port down
	"init_on_free=1",         // memory that is given back holds nothing: what the workload had is gone before the power is
	"oops=panic", "panic=-1", // an error of the kernel ends the machine
	"random.trust_bootloader=off", // a seed from the firmware is a seed from the host
	"mce=off",                     // machine checks of a guest are the host's invention
	"pci=noearly",                 // no quirks by configuration space before the kernel is up
	"tsc=reliable", "no-kvmclock", // the CPU's clock rather than the hypervisor's page
	"no_timer_check", // which an emulated VM on a busy host fails at times, and panics; under KVM Linux leaves it out by itself
}

// Parameters are those that every image has.
func Parameters() []string { return slices.Clone(parameters) }

// Cmdline is the command line of an image: the one definition, for booting it and for predicting its measurement.
// extra comes last.
func Cmdline(profile string, o cmdline.Options, extra string) string {
	f := slices.Clone(parameters)
	if profile == cmdline.Simulation {
		f = append(f, fmt.Sprintf("tsm_sim.vsock_port=%d", SimulatedPSPPort))
	}
	o.Profile = profile
	f = append(f, o.String())
	if extra = strings.TrimSpace(extra); extra != "" {
		f = append(f, extra)
	}
	return strings.Join(f, " ")
}

// DefaultAllow is what an image permits that was not told: in simulation, what the manifests of the Cocos documentation
// need, which name tags and plain-http brokers and no recipients.
func DefaultAllow(profile string) []string {
	if profile != cmdline.Simulation {
		return nil
	}
	return []string{cmdline.AllowHTTP, cmdline.AllowTag, cmdline.AllowUnsealed}
}

// cmdline makes the line that o asks for and the list of what it permits. The line is read back as the guest will, so
// that an image which could not boot is not built.
func (o Options) cmdline() (line string, allow []string, err error) {
	c := cmdline.Options{Profile: o.Profile, SHA384: o.ManifestSHA384, Deadline: o.Deadline}
	allow = o.Allow
	if allow == nil {
		allow = DefaultAllow(o.Profile)
	}
	if len(allow) > 0 && !o.simulation() {
		return "", nil, fmt.Errorf("a production image permits nothing, but %s is asked for; build with profile %s",
			strings.Join(allow, ","), cmdline.Simulation)
	}
	if c.Allow, err = cmdline.ParseAllow(strings.Join(allow, ",")); err != nil {
		return "", nil, err
	}
	if o.Net != "" {
		if c.Net, err = cmdline.ParseNet(o.Net); err != nil {
			return "", nil, err
		}
	}
	if o.Swap != "" {
		if c.Swap, err = cmdline.ParseSwap(o.Swap); err != nil {
			return "", nil, err
		}
	}
	if o.ManifestSource != "" {
		if c.Manifest, err = cmdline.ParseSource(o.ManifestSource); err != nil {
			return "", nil, err
		}
		if c.Manifest.Kind == cmdline.CVMS && !slices.Contains(o.With, Cocos) {
			return "", nil, fmt.Errorf("manifest source %s: only an image built with %s has it (--with %s)", c.Manifest, Cocos, Cocos)
		}
	}
	if err := checkExtra(o.Extra); err != nil {
		return "", nil, err
	}
	line = Cmdline(o.Profile, c, o.Extra)
	if _, err := cmdline.Parse(line); err != nil {
		return "", nil, fmt.Errorf("command line %q: %w", line, err)
	}
	allow = slices.Sorted(slices.Values(allow))
	return line, append([]string{}, allow...), nil
}

// checkExtra keeps free parameters from saying what only Options may say, or from moving the rest of the line into
// init's arguments.
func checkExtra(extra string) error {
	for _, r := range extra {
		if r < ' ' || r > '~' {
			return fmt.Errorf("kernel parameters %q: only printable ASCII can stand on a command line", extra)
		}
	}
	if strings.Contains(extra, "ampoule.") {
		return fmt.Errorf("kernel parameters %q: ampoule.* has options of its own", extra)
	}
	if slices.Contains(strings.Fields(extra), "--") {
		return errors.New(`kernel parameters: init takes no arguments, so "--" has no place here`)
	}
	return nil
}
