// Package config reads config.toml: one struct, one literal with the defaults,
// strict keys, and every problem told at once with its line. It reads nothing
// else and changes nothing; flags override it in the CLI, the environment only
// moves directories (package paths).
package config

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"sort"
	"strings"
	"time"

	"github.com/pelletier/go-toml/v2"

	"github.com/banger-dev/banger/internal/errs"
	"github.com/banger-dev/banger/internal/units"
)

// maxFile bounds the config file, in bytes.
const maxFile = 1 << 20

// Config is every setting. The doc tag is what `banger config show` prints.
type Config struct {
	DefaultImageName string `toml:"default_image_name" doc:"image of a VM that names none"`
	SSHKeyPath       string `toml:"ssh_key_path" doc:"private key for ssh into VMs; made on first need when it is the default"`
	Hypervisor       string `toml:"hypervisor" doc:"auto, firecracker or qemu"`
	FirecrackerBin   string `toml:"firecracker_bin" doc:"firecracker program; empty looks on PATH"`
	QEMUBin          string `toml:"qemu_bin" doc:"qemu-system-x86_64 program; empty looks on PATH"`
	Network          string `toml:"network" doc:"auto, user or none"`
	LAN              string `toml:"lan" doc:"allow or deny: may VMs reach private address ranges"`
	LogLevel         string `toml:"log_level" doc:"debug, info, warn or error"`

	VMDefaults VMDefaults `toml:"vm_defaults"`
	Limits     Limits     `toml:"limits"`
}

// VMDefaults are the sizes of a VM that names none; 0 derives them from the host.
type VMDefaults struct {
	CPUs   int        `toml:"cpus" doc:"vCPUs; 0 derives them from the host"`
	Memory units.Size `toml:"memory" doc:"RAM; 0 derives it from the host"`
	Disk   units.Size `toml:"disk" doc:"size of the work disk and of the system disk, sparse; 0 is 20G"`
}

// Limits bound what banger takes of the host.
type Limits struct {
	BootTimeout   Duration   `toml:"boot_timeout" doc:"how long a boot to the agent may take"`
	StopTimeout   Duration   `toml:"stop_timeout" doc:"how long a guest may take to stop by itself"`
	Templates     units.Size `toml:"templates" doc:"disk space that templates may take; the least used go first"`
	Events        int        `toml:"events" doc:"how many events are kept"`
	FirstUID      int        `toml:"first_uid" doc:"first of the user ids that hypervisors run as when the daemon is root"`
	ParallelBoots int        `toml:"parallel_boots" doc:"boots at the same time; 0 is the number of CPUs"`
}

// Duration is a time.Duration written as Go writes it ("90s").
type Duration time.Duration

// UnmarshalText reads a duration.
func (d *Duration) UnmarshalText(b []byte) error {
	v, err := time.ParseDuration(string(b))
	if err != nil {
		return fmt.Errorf("%q is no duration: write it as 90s, 5m or 8h", b)
	}
	*d = Duration(v)
	return nil
}

// MarshalText writes a duration.
func (d Duration) MarshalText() ([]byte, error) { return []byte(d.String()), nil }

// String writes a duration.
func (d Duration) String() string { return time.Duration(d).String() }

// Default is every setting's value where the file is silent. sshKey is the
// default place of the key.
func Default(sshKey string) Config {
	return Config{
		DefaultImageName: "debian-bookworm",
		SSHKeyPath:       sshKey,
		Hypervisor:       "auto",
		Network:          "auto",
		LAN:              "deny",
		LogLevel:         "info",
		Limits: Limits{
			BootTimeout:   Duration(90 * time.Second),
			StopTimeout:   Duration(30 * time.Second),
			Templates:     units.Size(8 * units.GiB),
			Events:        100_000,
			FirstUID:      2_000_000_000,
			ParallelBoots: 0,
		},
	}
}

// Loaded is a config with where each value came from.
type Loaded struct {
	Config
	Path string
	// FromFile has the dotted keys that the file sets.
	FromFile map[string]bool
}

// Load reads the file at path over the defaults; a file that is not there is
// an empty one. Every unknown key and bad value is in the error (kind invalid,
// code config_invalid), one a line with its line number.
func Load(path, sshKey string) (Loaded, error) {
	l := Loaded{Config: Default(sshKey), Path: path, FromFile: map[string]bool{}}
	data, err := readBounded(path)
	if errors.Is(err, fs.ErrNotExist) {
		return l, nil
	}
	if err != nil {
		return l, errs.Wrap(err, errs.Invalid, "config_unreadable", "cannot read the config %s", path)
	}
	problems := decode(data, &l)
	problems = append(problems, l.Config.check()...)
	if len(problems) > 0 {
		return l, errs.New(errs.Invalid, "config_invalid", "%s: %s", path, strings.Join(problems, "; ")).
			WithHint("mend it with: banger config edit")
	}
	l.SSHKeyPath = expandHome(l.SSHKeyPath)
	l.FirecrackerBin = expandHome(l.FirecrackerBin)
	l.QEMUBin = expandHome(l.QEMUBin)
	return l, nil
}

func readBounded(path string) ([]byte, error) {
	st, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if !st.Mode().IsRegular() {
		return nil, errors.New("not a regular file")
	}
	if st.Size() > maxFile {
		return nil, fmt.Errorf("%d bytes, more than %d", st.Size(), maxFile)
	}
	return os.ReadFile(path)
}

// decode reads data into l and returns what is wrong with it.
func decode(data []byte, l *Loaded) []string {
	var problems []string
	if err := toml.Unmarshal(data, &l.Config); err != nil {
		return append(problems, describe(err))
	}
	strict := Config{}
	err := toml.NewDecoder(bytes.NewReader(data)).DisallowUnknownFields().Decode(&strict)
	var missing *toml.StrictMissingError
	if errors.As(err, &missing) {
		known := Keys()
		for _, e := range missing.Errors {
			key := strings.Join(e.Key(), ".")
			row, _ := e.Position()
			p := fmt.Sprintf("line %d: unknown key %q", row, key)
			if s := closest(key, known); s != "" {
				p += fmt.Sprintf(" (did you mean %q?)", s)
			}
			problems = append(problems, p)
		}
	}
	raw := map[string]any{}
	if err := toml.Unmarshal(data, &raw); err == nil {
		flatten("", raw, l.FromFile)
	}
	return problems
}

func describe(err error) string {
	var de *toml.DecodeError
	if errors.As(err, &de) {
		row, _ := de.Position()
		msg := strings.TrimPrefix(de.Error(), "toml: ")
		if key := strings.Join(de.Key(), "."); key != "" {
			return fmt.Sprintf("line %d: %s: %s", row, key, msg)
		}
		return fmt.Sprintf("line %d: %s", row, msg)
	}
	return strings.TrimPrefix(err.Error(), "toml: ")
}

func flatten(prefix string, m map[string]any, into map[string]bool) {
	for k, v := range m {
		if sub, ok := v.(map[string]any); ok {
			flatten(prefix+k+".", sub, into)
			continue
		}
		into[prefix+k] = true
	}
}

// check gives every value that makes no sense.
func (c Config) check() []string {
	var p []string
	oneOf := func(key, v string, allowed ...string) {
		for _, a := range allowed {
			if v == a {
				return
			}
		}
		p = append(p, fmt.Sprintf("%s = %q: must be one of %s", key, v, strings.Join(allowed, ", ")))
	}
	oneOf("hypervisor", c.Hypervisor, "auto", "firecracker", "qemu", "hosted")
	oneOf("network", c.Network, "auto", "user", "none")
	oneOf("lan", c.LAN, "allow", "deny")
	oneOf("log_level", c.LogLevel, "debug", "info", "warn", "error")
	between := func(key string, v, low, high int64, show func(int64) string) {
		if v != 0 && (v < low || v > high) {
			p = append(p, fmt.Sprintf("%s = %s: must be 0 or between %s and %s", key, show(v), show(low), show(high)))
		}
	}
	count := func(n int64) string { return fmt.Sprint(n) }
	dur := func(n int64) string { return time.Duration(n).String() }
	between("vm_defaults.cpus", int64(c.VMDefaults.CPUs), 1, 255, count)
	between("vm_defaults.memory", int64(c.VMDefaults.Memory), 128*units.MiB, 4*units.TiB, units.FormatSize)
	between("vm_defaults.disk", int64(c.VMDefaults.Disk), 256*units.MiB, 16*units.TiB, units.FormatSize)
	between("limits.boot_timeout", int64(c.Limits.BootTimeout), int64(time.Second), int64(time.Hour), dur)
	between("limits.stop_timeout", int64(c.Limits.StopTimeout), int64(100*time.Millisecond), int64(time.Hour), dur)
	between("limits.templates", int64(c.Limits.Templates), 64*units.MiB, 16*units.TiB, units.FormatSize)
	between("limits.events", int64(c.Limits.Events), 100, 100_000_000, count)
	between("limits.first_uid", int64(c.Limits.FirstUID), 1000, 4_000_000_000, count)
	between("limits.parallel_boots", int64(c.Limits.ParallelBoots), 1, 1024, count)
	if c.DefaultImageName == "" {
		p = append(p, `default_image_name = "": must name an image`)
	}
	for key, v := range map[string]string{"ssh_key_path": c.SSHKeyPath, "firecracker_bin": c.FirecrackerBin, "qemu_bin": c.QEMUBin} {
		if strings.ContainsFunc(v, func(r rune) bool { return r < ' ' || r == 0x7f }) {
			p = append(p, fmt.Sprintf("%s = %q: has a control character", key, v))
		}
	}
	sort.Strings(p)
	return p
}

// Value is one setting as `banger config show` prints it.
type Value struct{ Key, Value, Origin, Doc string }

// Values lists every setting in the struct's order.
func (l Loaded) Values() []Value {
	var out []Value
	walk(reflect.ValueOf(l.Config), "", func(key, doc string, v reflect.Value) {
		origin := "default"
		if l.FromFile[key] {
			origin = l.Path
		}
		out = append(out, Value{Key: key, Value: fmt.Sprint(v.Interface()), Origin: origin, Doc: doc})
	})
	return out
}

// Keys lists every dotted key.
func Keys() []string {
	var out []string
	walk(reflect.ValueOf(Config{}), "", func(key, _ string, _ reflect.Value) { out = append(out, key) })
	return out
}

func walk(v reflect.Value, prefix string, f func(key, doc string, v reflect.Value)) {
	t := v.Type()
	for i := range t.NumField() {
		field := t.Field(i)
		key := prefix + field.Tag.Get("toml")
		if field.Type.Kind() == reflect.Struct {
			walk(v.Field(i), key+".", f)
			continue
		}
		f(key, field.Tag.Get("doc"), v.Field(i))
	}
}

func expandHome(p string) string {
	if rest, ok := strings.CutPrefix(p, "~/"); ok {
		if home, err := os.UserHomeDir(); err == nil {
			return filepath.Join(home, rest)
		}
	}
	return p
}
