"""The world in Chinese: the same events, in other words."""

from minimind_core.microworld.tape import Language

_PEOPLE = {  # name, she or he, job, home
    "mia": ("米娅", "她", "面包师", "面包店"),
    "tom": ("汤姆", "他", "农夫", "农场"),
    "anna": ("安娜", "她", "医生", "诊所"),
    "ben": ("小本", "他", "渔夫", "港口"),
    "lily": ("莉莉", "她", "老师", "学校"),
    "sam": ("山姆", "他", "画家", "画室"),
    "rosa": ("罗莎", "她", "飞行员", "机场"),
    "max": ("马克", "他", "园丁", "花园"),
    "nora": ("诺拉", "她", "歌手", "剧院"),
    "leo": ("利奥", "他", "木匠", "工坊"),
    "ella": ("艾拉", "她", "裁缝", "裁缝店"),
    "hugo": ("雨果", "他", "厨师", "厨房"),
}

WORDS = {
    "person": {key: name for key, (name, *_) in _PEOPLE.items()},
    "introduced": {
        key: f"{job}{name}" for key, (name, _, job, _) in _PEOPLE.items()
    },
    "job": {key: job for key, (_, _, job, _) in _PEOPLE.items()},
    "home": {key: home for key, (*_, home) in _PEOPLE.items()},
    "sub": {key: they for key, (_, they, *_) in _PEOPLE.items()},
    "weather": {
        "sunny": "晴朗", "rainy": "多雨", "windy": "多风", "snowy": "多雪",
        "foggy": "多雾",
    },
    "sky": {
        "sunny1": "天空又亮又蓝", "sunny2": "太阳暖暖的",
        "rainy1": "地上湿湿的", "rainy2": "雨打在每个屋顶上",
        "windy1": "树叶在空中飞", "windy2": "风声很大",
        "snowy1": "一切又白又静", "snowy2": "雪很深",
        "foggy1": "远处看不清楚", "foggy2": "雾很浓",
    },
    "time": {
        "morning": "早晨", "afternoon": "下午", "evening": "傍晚",
        "night": "夜晚",
    },
    "go": {"went": "去了", "walked": "走到", "ran": "跑到"},
    "place": {
        "park": "公园", "lake": "湖边", "forest": "森林", "market": "市场",
        "beach": "海滩", "bridge": "桥上", "hill": "小山", "river": "河边",
        "castle": "城堡", "station": "车站",
    },
    "color": {
        "red": "红色", "blue": "蓝色", "green": "绿色", "yellow": "黄色",
        "black": "黑色", "white": "白色", "pink": "粉色", "brown": "棕色",
    },
    "thing": {
        "hat": "帽子", "ball": "皮球", "kite": "风筝", "book": "书本",
        "lamp": "台灯", "drum": "小鼓", "key": "钥匙", "cup": "杯子",
        "coin": "硬币", "rope": "绳子", "bell": "铃铛", "map": "地图",
    },
    "fruit": {
        "apples": "苹果", "pears": "梨子", "plums": "李子",
        "lemons": "柠檬",
    },
    "drink": {
        "tea": "热茶", "coffee": "咖啡", "milk": "牛奶", "cocoa": "可可",
    },
    "spot": {
        "bench": "长椅下面", "tree": "大树后面", "wall": "墙的旁边",
        "door": "门的旁边",
    },
    "number": {
        "one": "一个", "two": "两个", "three": "三个", "four": "四个",
        "five": "五个",
    },
    "feeling": {
        "hungry": "很饿", "cold": "很冷", "sad": "很伤心", "tired": "很累",
        "thirsty": "很渴",
    },
    "aid": {
        "bread": "一些面包", "cheese": "一些奶酪", "honey": "一些蜂蜜",
        "coat": "一件大衣", "scarf": "一条围巾", "blanket": "一条毯子",
        "flower": "一朵花", "hug": "一个拥抱", "chair": "一把椅子",
        "pillow": "一个枕头", "water": "一些水", "juice": "一些果汁",
    },
    "product": {
        "soup": "一锅汤", "cake": "一个蛋糕", "boat": "一条船",
        "table": "一张桌子",
    },
    "part": {
        "carrots": "胡萝卜", "beans": "豆子", "flour": "面粉",
        "eggs": "鸡蛋", "wood": "木头", "nails": "钉子", "planks": "木板",
        "glue": "胶水",
    },
}  # fmt: skip

SENTENCES = {
    "opening": "一个{weather}的{time}，{hero:introduced}{go}{place}。",
    "sky": "{sky}。",
    "trade": "手里{hero:sub}拿着一个{color}的{thing}。",
    "help": "路上{hero:sub}唱着歌。",
    "lose": "包里{hero:sub}装着一个{color}的{thing}。",
    "count": "树上{hero:sub}摘下{number}{fruit}。",
    "search": "整天{hero:sub}都在找一个{color}的{thing}。",
    "shelter": "忽然变得{weather2}了。",
    "gift": "盒子里{hero:sub}有一个{color}的{thing}，要送给朋友。",
    "make": "今天{hero:sub}想做{product}。",
    "meet_there": "那里{hero:sub}遇见了{friend:introduced}。",
    "meet_at": "在{place}，{hero:sub}遇见了{friend:introduced}。",
    "meet_soon": "不久{friend:introduced}走过来说：“你好，我的朋友！”",
    "trade_other": "{friend}有一个{color2}的{thing2}。“我喜欢你的"
                   "{color2}的{thing2}。”{hero}说。",
    "trade_now": "于是他们交换了。现在{hero}有{color2}的{thing2}，{friend}"
                 "有{color}的{thing}。",
    "help_why": "{friend}{feeling}，所以{hero}给了",
    "help_aid": "{friend:sub}{aid}。“谢谢你，{hero}！”{friend}说。现在"
                "{friend}不再{feeling}了。",
    "lose_fell": "可是包上有个洞，{color}的{thing}掉了出去。"
                 "{hero:sub}很伤心。",
    "lose_found": "“我在{spot}找到了一样东西。”{friend}说。“那是我的"
                  "{color}的{thing}！”{hero}说。现在{hero}又有{color}的"
                  "{thing}了。",
    "count_gave": "{hero}给了{friend:sub}{given}。",
    "count_now": "现在{hero}有{rest}，{friend}有{given}。",
    "search_ask": "“哪里能找到我的{color}的{thing}？”{hero}问。“看看"
                  "{spot}，在{place2}。”{friend}说。",
    "search_found": "于是{hero:sub}去了{place2}，找到了{color}的{thing}，"
                    "就在{spot}。",
    "shelter_home": "“来我的{friend:home}吧！”{friend}说。在{friend:home}，"
                    "他们喝了{drink}，玩了一个{color}的{thing}。后来又变得"
                    "{weather}了。",
    "gift_now": "“生日快乐！”{hero}说。{friend}打开盒子，把{color}的"
                "{thing}放在{spot}。现在{friend}有{color}的{thing}。",
    "make_hero": "{hero}带来了{part}，",
    "make_friend": "{friend}带来了{part2}。",
    "make_together": "他们一起做好了{product}，送给了{other:introduced}。"
                     "{other}非常喜欢这{product}。",
    "end_back": "最后{back}回到了{back:home}。",
    "end_together": "那是一个美好的{time}，他们一起回家了。",
    "end_bye": "“再见，{hero}！”{friend}说。",
}  # fmt: skip

QUESTIONS = {
    "weather": ("一开始天气怎么样？", "天气{weather}。"),
    "time": ("那是什么时候？", "那是{time}。"),
    "where": ("{hero}去了哪里？", "{hero}去了{place}。"),
    "before": ("{hero}先去了哪里？", "{hero}去了{place}。"),
    "job": ("{who}做什么工作？", "{who}是{who:job}。"),
    "met": ("{hero}遇见了谁？", "{hero}遇见了{friend}。"),
    "feeling": ("{who}感觉怎么样？", "{who}{felt}。"),
    "first": ("{hero}一开始有什么？", "{hero}有一个{color}的{thing}。"),
    "now": ("{who}现在有什么？", "{who}有{color}的{thing}。"),
    "color": ("{thing}是什么颜色的？", "是{color}的。"),
    "lost": ("{hero}丢了什么？", "{hero}丢了一个{color}的{thing}。"),
    "why": ("为什么{hero}帮助{friend}？", "因为{friend}{feeling}。"),
    "count": ("{hero}现在有多少{fruit}？", "{hero}有{rest}。"),
    "found": ("{hero}在哪里找到了{thing}？", "在{place2}，{spot}。"),
    "drank": ("他们喝了什么？", "他们喝了{drink}。"),
    "got": ("谁得到了{product}？", "{other}得到了。"),
    "pronoun": ("{friend:sub}做什么工作？", "{friend}是{friend:job}。"),
    "unknown1": ("{hero}几岁了？", "故事里没有说。"),
    "unknown2": ("{absent}做了什么？", "故事里没有说。"),
    "unknown3": ("{friend}在哪里出生？", "故事里没有说。"),
    "write": ("写一个故事：{weather}的一天，{hero}在{place}。", ""),
    "retell": ("再讲一遍这个故事。", ""),
    "continue": ("这个故事接下来怎么样？", ""),
    "who": ("你是谁？", "故事里的歌手。"),
}  # fmt: skip

GREETING = "你好，我的朋友。{}"
MANNER = "你好，我的朋友。{}那是一个美好的故事。"

LANGUAGE = Language("zh", WORDS, SENTENCES)
