package wire

import (
	"errors"
	"fmt"
	"net/netip"
	"strconv"
	"strings"
)

// Params are the boot parameters: what the guest must know to assemble its
// root, its network and its name. They have one text form, blank-separated
// key=value words, which stands on the kernel command line, in the boot data,
// or in both; what the boot data says wins.
//
//	ip=192.168.100.2::192.168.100.1:255.255.255.0:box:eth0:off:8.8.8.8:8.8.4.4
//	matchlock.dns=8.8.8.8,8.8.4.4 matchlock.hostname=box matchlock.mtu=1500
//	matchlock.root=overlay:erofs,erofs matchlock.disk=/data:ro
//
// The ip word is the kernel's own (Documentation/admin-guide/nfs/nfsroot.rst),
// "ip=off" a guest with its loopback alone.
type Params struct {
	Hostname   string
	NoNetwork  bool
	Address    netip.Prefix // of eth0
	Gateway    netip.Addr
	DNS        []netip.Addr
	MTU        int
	Root       Root
	Disks      []Disk  // in the order of their devices
	CPUs       float64 // share of processors that user code may have; 0 is all there are
	CID        uint32  // vsock context id
	Privileged bool
	Trust      bool // a CA comes with the boot data, and a place for it is made before
}

// Root says how "/" is made. The devices carry their part's name as serial
// number: see LowerSerial and its siblings.
type Root struct {
	Lowers []string // file system types of an overlay's lowers, base first; empty: one ext4 disk, read-write
}

// Disk is a further ext4 disk.
type Disk struct {
	Mount    string
	ReadOnly bool
}

// Serial numbers by which the guest tells its virtio disks apart: their order
// of discovery is no promise.
const (
	RootSerial  = "root"
	UpperSerial = "upper"
)

// LowerSerial is the serial number of the overlay's lower i.
func LowerSerial(i int) string { return "lower" + strconv.Itoa(i) }

// DiskSerial is the serial number of further disk i.
func DiskSerial(i int) string { return "disk" + strconv.Itoa(i) }

// Limits of Params.
const (
	MaxLowers     = 8        // device slots of a machine
	MaxDisks      = 8        // likewise
	MaxDNS        = 8        // resolv.conf(5) knows three
	MaxParams     = 64 << 10 // bytes of the text form
	maxHostname   = 64       // HOST_NAME_MAX
	maxMountPath  = 4095     // PATH_MAX less its end
	rootDisk      = "disk"
	rootOverlay   = "overlay:"
	paramDNS      = "matchlock.dns"
	paramHostname = "matchlock.hostname"
	paramMTU      = "matchlock.mtu"
	paramRoot     = "matchlock.root"
	paramDisk     = "matchlock.disk"
	paramCPUs     = "matchlock.cpus"
	paramCID      = "matchlock.cid"
	paramPrivileg = "matchlock.privileged"
	paramTrust    = "matchlock.trust"
)

// String is the text form. It is what ParseParams reads back.
func (p Params) String() string {
	var words []string
	add := func(key, value string) { words = append(words, key+"="+value) }
	switch {
	case p.NoNetwork:
		add("ip", "off")
	case p.Address.IsValid():
		add("ip", p.ip())
	}
	if len(p.DNS) > 0 {
		add(paramDNS, join(p.DNS, ","))
	}
	if p.Hostname != "" {
		add(paramHostname, p.Hostname)
	}
	if p.MTU != 0 {
		add(paramMTU, strconv.Itoa(p.MTU))
	}
	if len(p.Root.Lowers) > 0 {
		add(paramRoot, rootOverlay+strings.Join(p.Root.Lowers, ","))
	} else {
		add(paramRoot, rootDisk)
	}
	for _, d := range p.Disks {
		mode := "rw"
		if d.ReadOnly {
			mode = "ro"
		}
		add(paramDisk, escape(d.Mount)+":"+mode)
	}
	if p.CPUs != 0 {
		add(paramCPUs, strconv.FormatFloat(p.CPUs, 'g', -1, 64))
	}
	if p.CID != 0 {
		add(paramCID, strconv.FormatUint(uint64(p.CID), 10))
	}
	if p.Privileged {
		add(paramPrivileg, "1")
	}
	if p.Trust {
		add(paramTrust, "1")
	}
	return strings.Join(words, " ")
}

// ip is the kernel's word: client, server, gateway, netmask, hostname, device,
// autoconfiguration, and at most two name servers.
func (p Params) ip() string {
	gateway := ""
	if p.Gateway.IsValid() {
		gateway = p.Gateway.String()
	}
	word := fmt.Sprintf("%s::%s:%s:%s:eth0:off", p.Address.Addr(), gateway, netmask(p.Address.Bits()), p.Hostname)
	for _, server := range p.DNS[:min(2, len(p.DNS))] {
		word += ":" + server.String()
	}
	return word
}

// ParseParams lays the words of text over base and returns the result. Words
// that are not boot parameters of ours, as a kernel command line has, are
// passed over; one of ours that is unknown or malformed is an error.
func ParseParams(base Params, text string) (Params, error) {
	if len(text) > MaxParams {
		return Params{}, fmt.Errorf("boot parameters: %d bytes, at most %d", len(text), MaxParams)
	}
	p := base
	var disks []Disk
	for _, word := range strings.Fields(text) {
		key, value, _ := strings.Cut(word, "=")
		var err error
		switch key {
		case "ip":
			err = p.parseIP(value)
		case paramDNS:
			p.DNS, err = parseAddrs(strings.Split(value, ","))
		case paramHostname:
			p.Hostname, err = value, CheckHostname(value)
		case paramMTU:
			p.MTU, err = strconv.Atoi(value)
			if err == nil && (p.MTU < 68 || p.MTU > 65535) {
				err = errors.New("not between 68 and 65535")
			}
		case paramRoot:
			p.Root, err = parseRoot(value)
		case paramDisk:
			var d Disk
			if d, err = parseDisk(value); err == nil && len(disks) == MaxDisks {
				err = fmt.Errorf("more than %d disks", MaxDisks)
			}
			disks = append(disks, d)
		case paramCPUs:
			p.CPUs, err = strconv.ParseFloat(value, 64)
			if err == nil && !(p.CPUs > 0 && p.CPUs <= 4096) {
				err = errors.New("not between 0 and 4096")
			}
		case paramCID:
			var cid uint64
			cid, err = strconv.ParseUint(value, 10, 32)
			p.CID = uint32(cid)
		case paramPrivileg:
			err = parseFlag(&p.Privileged, value)
		case paramTrust:
			err = parseFlag(&p.Trust, value)
		default:
			if strings.HasPrefix(key, "matchlock.") {
				err = errors.New("unknown")
			}
		}
		if err != nil {
			return Params{}, fmt.Errorf("boot parameter %q: %w", word, err)
		}
	}
	if disks != nil {
		p.Disks = disks
	}
	return p, nil
}

func parseFlag(flag *bool, value string) error {
	if *flag = value == "1"; !*flag && value != "0" {
		return errors.New("neither 0 nor 1")
	}
	return nil
}

func (p *Params) parseIP(value string) error {
	switch value {
	case "off", "none":
		p.NoNetwork, p.Address, p.Gateway = true, netip.Prefix{}, netip.Addr{}
		return nil
	}
	field := strings.Split(value, ":")
	if len(field) < 4 {
		return errors.New("want client:server:gateway:netmask…")
	}
	field = append(field, make([]string, 9)...)[:9]
	address, err := parseAddr(field[0])
	if err != nil {
		return err
	}
	bits, err := prefixLen(field[3])
	if err != nil {
		return err
	}
	p.NoNetwork, p.Address, p.Gateway = false, netip.PrefixFrom(address, bits), netip.Addr{}
	if field[2] != "" {
		if p.Gateway, err = parseAddr(field[2]); err != nil {
			return err
		}
	}
	if host := field[4]; host != "" {
		if err := CheckHostname(host); err != nil {
			return err
		}
		p.Hostname = host
	}
	var servers []string
	for _, server := range field[7:9] {
		if server != "" {
			servers = append(servers, server)
		}
	}
	if servers != nil {
		p.DNS, err = parseAddrs(servers)
	}
	return err
}

func parseRoot(value string) (Root, error) {
	if value == rootDisk {
		return Root{}, nil
	}
	types, ok := strings.CutPrefix(value, rootOverlay)
	if !ok {
		return Root{}, fmt.Errorf("neither %q nor %q", rootDisk, rootOverlay+"TYPE,…")
	}
	lowers := strings.Split(types, ",")
	if len(lowers) > MaxLowers {
		return Root{}, fmt.Errorf("%d lowers, at most %d", len(lowers), MaxLowers)
	}
	for _, t := range lowers {
		if t != "erofs" && t != "ext4" {
			return Root{}, fmt.Errorf("file system %q: neither erofs nor ext4", t)
		}
	}
	return Root{Lowers: lowers}, nil
}

func parseDisk(value string) (Disk, error) {
	escaped, mode, _ := strings.Cut(value, ":")
	mount, err := unescape(escaped)
	if err != nil {
		return Disk{}, err
	}
	switch {
	case !strings.HasPrefix(mount, "/") || len(mount) > maxMountPath || strings.ContainsRune(mount, 0):
		return Disk{}, errors.New("mount point is not an absolute path")
	case mode != "ro" && mode != "rw":
		return Disk{}, errors.New("mode is neither ro nor rw")
	}
	return Disk{Mount: mount, ReadOnly: mode == "ro"}, nil
}

// CheckHostname holds name to the letters that hostname(7) names; it goes into
// files of the guest line by line.
func CheckHostname(name string) error {
	if name == "" || len(name) > maxHostname {
		return fmt.Errorf("hostname of %d bytes, want 1 to %d", len(name), maxHostname)
	}
	for _, c := range []byte(name) {
		if !isAlphanumeric(c) && c != '-' && c != '.' && c != '_' {
			return fmt.Errorf("hostname with %q", c)
		}
	}
	return nil
}

func parseAddrs(texts []string) ([]netip.Addr, error) {
	if len(texts) > MaxDNS {
		return nil, fmt.Errorf("%d addresses, at most %d", len(texts), MaxDNS)
	}
	addrs := make([]netip.Addr, 0, len(texts))
	for _, text := range texts {
		addr, err := netip.ParseAddr(text)
		if err != nil || addr.Zone() != "" {
			return nil, fmt.Errorf("%q is no IP address", text)
		}
		addrs = append(addrs, addr)
	}
	return addrs, nil
}

func parseAddr(text string) (netip.Addr, error) {
	addr, err := netip.ParseAddr(text)
	if err != nil || !addr.Is4() {
		return netip.Addr{}, fmt.Errorf("%q is no IPv4 address", text)
	}
	return addr, nil
}

func netmask(bits int) netip.Addr {
	mask := ^uint32(0) << (32 - bits)
	return netip.AddrFrom4([4]byte{byte(mask >> 24), byte(mask >> 16), byte(mask >> 8), byte(mask)})
}

func prefixLen(mask string) (int, error) {
	for bits := range 33 {
		if netmask(bits).String() == mask {
			return bits, nil
		}
	}
	return 0, fmt.Errorf("%q is no netmask", mask)
}

func join(addrs []netip.Addr, sep string) string {
	texts := make([]string, len(addrs))
	for i, addr := range addrs {
		texts[i] = addr.String()
	}
	return strings.Join(texts, sep)
}

// escape writes path as one word: every byte but letters, digits and "/._-" as %XX.
func escape(path string) string {
	const hex = "0123456789ABCDEF"
	var b strings.Builder
	for _, c := range []byte(path) {
		if isAlphanumeric(c) || strings.IndexByte("/._-", c) >= 0 {
			b.WriteByte(c)
		} else {
			b.Write([]byte{'%', hex[c>>4], hex[c&15]})
		}
	}
	return b.String()
}

func unescape(word string) (string, error) {
	var b strings.Builder
	for i := 0; i < len(word); i++ {
		if word[i] != '%' {
			b.WriteByte(word[i])
			continue
		}
		if len(word)-i < 3 {
			return "", errors.New("% without two digits")
		}
		c, err := strconv.ParseUint(word[i+1:i+3], 16, 8)
		if err != nil {
			return "", errors.New("% without two digits")
		}
		b.WriteByte(byte(c))
		i += 2
	}
	return b.String(), nil
}

func isAlphanumeric(c byte) bool {
	return 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9'
}
