// A round of Go's first client of Consul against a node on this host and another node, whose address is given.
package main

import (
	"fmt"
	"os"
	"time"

	consulapi "github.com/armon/consul-api"
)

func check(err error) {
	if err != nil {
		panic(err)
	}
}

func assert(holds bool, what string, found interface{}) {
	if !holds {
		panic(fmt.Sprintf("%s: %+v", what, found))
	}
}

func client(address string) *consulapi.Client {
	config := consulapi.DefaultConfig()
	config.Address = address
	client, err := consulapi.NewClient(config)
	check(err)
	return client
}

func until(what string, fact func() bool) {
	end := time.Now().Add(10 * time.Second)
	for !fact() {
		if time.Now().After(end) {
			panic("never came about: " + what)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// Returns the aggregated status of the only instance of `web`.
func status(client *consulapi.Client) string {
	entries, _, err := client.Health().Service("web", "v1", false, nil)
	check(err)
	if len(entries) != 1 {
		return ""
	}
	worst := "passing"
	for _, found := range entries[0].Checks {
		if found.Status == "critical" || worst == "passing" {
			worst = found.Status
		}
	}
	return worst
}

func main() {
	here, other := client("127.0.0.1:7500"), client(os.Args[1]+":7500")
	agent := here.Agent()
	own, err := agent.NodeName()
	check(err)
	assert(own == "m0", "the node's name", own)

	// Registration with a TTL check, and its reports.
	check(agent.ServiceRegister(&consulapi.AgentServiceRegistration{
		ID: "web-1", Name: "web", Tags: []string{"v1"}, Port: 8080,
		Check: &consulapi.AgentServiceCheck{TTL: "1h"},
	}))
	services, err := agent.Services()
	check(err)
	assert(len(services) == 1 && services["web-1"].Port == 8080, "services", services)
	until("it is critical on the other node", func() bool { return status(other) == "critical" })
	check(agent.PassTTL("service:web-1", "fine"))
	until("it passes on the other node", func() bool { return status(other) == "passing" })
	check(agent.WarnTTL("service:web-1", "slow"))
	until("it warns", func() bool { return status(other) == "warning" })
	checks, err := agent.Checks()
	check(err)
	assert(checks["service:web-1"].Output == "slow", "checks", checks)

	// A blocking query on the other node wakes for the change here.
	_, meta, err := other.Health().Service("web", "", true, nil)
	check(err)
	assert(meta.LastIndex > 0 && meta.KnownLeader, "headers", meta)
	woken := make(chan int, 1)
	go func() {
		query := &consulapi.QueryOptions{WaitIndex: meta.LastIndex, WaitTime: time.Minute}
		for {
			entries, meta, err := other.Health().Service("web", "", true, query)
			check(err)
			if len(entries) > 0 {
				assert(meta.LastIndex > query.WaitIndex, "index", meta)
				woken <- len(entries)
				return
			}
			query.WaitIndex = meta.LastIndex
		}
	}()
	check(agent.FailTTL("service:web-1", "down"))
	until("it fails", func() bool { return status(other) == "critical" })
	check(agent.PassTTL("service:web-1", "fine"))
	select {
	case found := <-woken:
		assert(found == 1, "instances", found)
	case <-time.After(10 * time.Second):
		panic("the query was not woken")
	}

	// A check that is registered apart needs an instance here: one without is refused, with the reason.
	refused := agent.CheckRegister(&consulapi.AgentCheckRegistration{
		ID: "apart", Name: "apart", AgentServiceCheck: consulapi.AgentServiceCheck{TTL: "1h"},
	})
	assert(refused != nil, "a check without an instance", refused)

	// The catalog, health, members and status.
	names, _, err := other.Catalog().Services(nil)
	check(err)
	_, hasConsul := names["consul"]
	assert(len(names["web"]) == 1 && hasConsul, "names", names)
	instances, _, err := other.Catalog().Service("web", "v1", nil)
	check(err)
	assert(len(instances) == 1 && instances[0].ServicePort == 8080 && instances[0].Node == "m0", "instances", instances)
	nodes, _, err := other.Catalog().Nodes(nil)
	check(err)
	assert(len(nodes) == 2, "nodes", nodes)
	node, _, err := other.Catalog().Node("m0", nil)
	check(err)
	assert(node.Services["web-1"] != nil, "node", node)
	centers, err := other.Catalog().Datacenters()
	check(err)
	assert(len(centers) == 1 && centers[0] == "dc1", "datacenters", centers)
	for _, query := range []func() ([]*consulapi.HealthCheck, *consulapi.QueryMeta, error){
		func() ([]*consulapi.HealthCheck, *consulapi.QueryMeta, error) { return other.Health().Node("m0", nil) },
		func() ([]*consulapi.HealthCheck, *consulapi.QueryMeta, error) {
			return other.Health().Checks("web", nil)
		},
		func() ([]*consulapi.HealthCheck, *consulapi.QueryMeta, error) {
			return other.Health().State("any", nil)
		},
	} {
		found, _, err := query()
		check(err)
		assert(len(found) > 0, "checks", found)
	}
	members, err := agent.Members(false)
	check(err)
	assert(len(members) == 2 && members[0].Status == 1, "members", members)
	leader, err := here.Status().Leader()
	check(err)
	assert(leader != "", "leader", leader)

	// User events: fired here, listed once on the other node.
	id, _, err := here.Event().Fire(&consulapi.UserEvent{Name: "deploy", Payload: []byte("v2")}, nil)
	check(err)
	until("the event is on the other node", func() bool {
		events, meta, err := other.Event().List("deploy", nil)
		check(err)
		if len(events) == 0 {
			return false
		}
		is := len(events) == 1 && events[0].ID == id && string(events[0].Payload) == "v2"
		assert(is && meta.LastIndex == other.Event().IDToIndex(id), "events", events)
		return true
	})

	check(agent.ServiceDeregister("web-1"))
	until("it is gone", func() bool { return status(other) == "" })
	fmt.Println("done")
}
