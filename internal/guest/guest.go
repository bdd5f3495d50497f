// Package guest is everything that PID 1 asks of the kernel below it: mounts, sysctls, links, children, power.
//
// It runs inside the VM only. What it reads from devices (DHCP answers, the clock) comes from a hostile host, so each
// such value is bounded and checked where it enters. The steps of the boot are in package init; nothing here knows
// their order, except that Mount comes first and PowerOff last.
package guest
